//! What the host may ask of this guest: the same object, and the same answers, as on the host. Pure.
//!
//! What it does not name is denied; an unknown field is refused, since a misspelt bound is none.

use crate::fields::{Fields, Refusal};

const ANY: &str = "*";
const ANY_USER: i64 = -1;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowedMount {
    pub source: String,
    pub target: String,
    pub readonly: bool,
}

impl AllowedMount {
    pub fn read(mut fields: Fields) -> Result<AllowedMount, Refusal> {
        let mount = AllowedMount {
            source: fields.needed_text("source")?,
            target: fields.needed_text("target")?,
            readonly: fields.flag("readonly", true)?,
        };
        fields.done()?;
        Ok(mount)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    programs: Vec<String>,
    exec: bool,
    env: Vec<String>,
    mounts: Vec<AllowedMount>,
    capabilities: Vec<String>,
    devices: Vec<String>,
    network: bool,
    users: Vec<i64>,
    tty: bool,
    writable_root: bool,
    copy_in: Vec<String>,
    copy_out: Vec<String>,
}

/// One program that is to run.
pub struct Program<'a> {
    pub name: &'a str,
    pub env: &'a [(String, String)],
    pub user: i64,
    pub tty: bool,
    pub capabilities: &'a [String],
}

impl Policy {
    pub fn read(mut fields: Fields) -> Result<Policy, Refusal> {
        fields.needed_number("version", 1, 1)?;
        let mut users = Vec::new();
        if let Some(value) = fields.take("users") {
            let crate::json::Value::List(list) = value else {
                return Err(Refusal::invalid("policy.users", "expected a list of numbers"));
            };
            for item in list {
                match item {
                    crate::json::Value::Number(user) if (ANY_USER..=i64::from(u32::MAX)).contains(&user) => {
                        users.push(user)
                    }
                    _ => {
                        return Err(Refusal::invalid(
                            "policy.users",
                            "expected a list of user ids, or -1",
                        ))
                    }
                }
            }
        }
        let mounts = fields
            .objects("mounts")?
            .into_iter()
            .map(AllowedMount::read)
            .collect::<Result<_, _>>()?;
        let policy = Policy {
            programs: fields.texts("programs")?,
            exec: fields.flag("exec", false)?,
            env: fields.texts("env")?,
            mounts,
            capabilities: fields.texts("capabilities")?,
            devices: fields.texts("devices")?,
            network: match fields.text("network")?.as_deref() {
                None | Some("none") => false,
                Some("given") => true,
                Some(_) => return Err(Refusal::invalid("policy.network", "expected none or given")),
            },
            users,
            tty: fields.flag("tty", false)?,
            writable_root: fields.flag("writable_root", false)?,
            copy_in: fields.texts("copy_in")?,
            copy_out: fields.texts("copy_out")?,
        };
        fields.done()?;
        Ok(policy)
    }

    /// What the box as a whole has, asked once.
    pub fn check_box(
        &self,
        mounts: &[AllowedMount],
        devices: &[String],
        network: bool,
        writable_root: bool,
    ) -> Result<(), Refusal> {
        let mut asked = mounts.to_vec();
        let mut allowed = self.mounts.clone();
        asked.sort();
        allowed.sort();
        if asked != allowed {
            return Err(denied("mounts", "other mounts than it names"));
        }
        for device in devices {
            if !has(&self.devices, device) {
                return Err(denied("devices", device));
            }
        }
        if network {
            self.check_network()?;
        }
        if writable_root && !self.writable_root {
            return Err(denied("writable_root", "a writable root"));
        }
        Ok(())
    }

    pub fn check_network(&self) -> Result<(), Refusal> {
        if self.network {
            return Ok(());
        }
        Err(denied("network", "a network"))
    }

    /// `main`: the box's own command, which `exec` has no say in.
    pub fn check_program(&self, program: &Program, main: bool) -> Result<(), Refusal> {
        if !main && !self.exec {
            return Err(denied("exec", &format!("to run {}", program.name)));
        }
        if !has(&self.programs, program.name) && !has(&self.programs, ANY) {
            return Err(denied("programs", program.name));
        }
        if !has(&self.env, ANY) {
            for (name, _) in program.env {
                if !has(&self.env, name) {
                    return Err(denied("env", name));
                }
            }
        }
        if !self.users.contains(&ANY_USER) && !self.users.contains(&program.user) {
            return Err(denied("users", &format!("user {}", program.user)));
        }
        if program.tty && !self.tty {
            return Err(denied("tty", "a terminal"));
        }
        for name in program.capabilities {
            if !has(&self.capabilities, name) {
                return Err(denied("capabilities", name));
            }
        }
        Ok(())
    }

    pub fn check_copy(&self, inward: bool, path: &str) -> Result<(), Refusal> {
        let (field, allowed) = if inward {
            ("copy_in", &self.copy_in)
        } else {
            ("copy_out", &self.copy_out)
        };
        for folder in allowed {
            let inside = path.strip_prefix(folder.trim_end_matches('/'));
            if !folder.is_empty() && inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Ok(());
            }
        }
        Err(denied(field, path))
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|known| known == item)
}

fn denied(field: &str, wanted: &str) -> Refusal {
    Refusal::denied(
        field,
        format!("the policy's field `{field}` does not allow {wanted}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Value;

    fn policy(text: &str) -> Policy {
        Policy::read(Fields::parse(text.as_bytes(), "policy").unwrap()).unwrap()
    }

    fn program<'a>(name: &'a str, env: &'a [(String, String)], capabilities: &'a [String]) -> Program<'a> {
        Program {
            name,
            env,
            user: 0,
            tty: false,
            capabilities,
        }
    }

    #[test]
    fn an_empty_policy_denies_everything() {
        let empty = policy(r#"{"version":1}"#);
        assert_eq!(
            empty
                .check_program(&program("/bin/sh", &[], &[]), true)
                .unwrap_err()
                .field,
            "programs"
        );
        assert_eq!(
            empty
                .check_program(&program("/bin/sh", &[], &[]), false)
                .unwrap_err()
                .field,
            "exec"
        );
        assert_eq!(empty.check_copy(true, "/").unwrap_err().field, "copy_in");
        assert_eq!(empty.check_copy(false, "/tmp").unwrap_err().field, "copy_out");
        assert_eq!(
            empty.check_box(&[], &[], true, false).unwrap_err().field,
            "network"
        );
        assert_eq!(
            empty.check_box(&[], &[], false, true).unwrap_err().field,
            "writable_root"
        );
        assert!(empty.check_box(&[], &[], false, false).is_ok());
    }

    #[test]
    fn each_field_has_its_say() {
        let open = policy(r#"{"version":1,"programs":["/bin/sh"],"env":["PATH"],"users":[0]}"#);
        let run = |program: &Program| open.check_program(program, true).map_err(|refusal| refusal.field);
        let path = [("PATH".to_string(), "/bin".to_string())];
        let other = [("LD_PRELOAD".to_string(), "/x".to_string())];
        let caps = ["CAP_CHOWN".to_string()];
        assert_eq!(run(&program("/bin/sh", &path, &[])), Ok(()));
        assert_eq!(run(&program("/bin/s", &path, &[])), Err("programs".into()));
        assert_eq!(run(&program("/bin/sh", &other, &[])), Err("env".into()));
        assert_eq!(run(&program("/bin/sh", &[], &caps)), Err("capabilities".into()));
        assert_eq!(
            run(&Program {
                user: 7,
                ..program("/bin/sh", &[], &[])
            }),
            Err("users".into())
        );
        assert_eq!(
            run(&Program {
                tty: true,
                ..program("/bin/sh", &[], &[])
            }),
            Err("tty".into())
        );
    }

    #[test]
    fn a_folder_allows_what_is_below_and_nothing_beside() {
        let open = policy(r#"{"version":1,"copy_in":["/srv/"],"copy_out":["/"]}"#);
        assert!(open.check_copy(true, "/srv").is_ok());
        assert!(open.check_copy(true, "/srv/a/b").is_ok());
        assert!(open.check_copy(true, "/srv2").is_err());
        assert!(open.check_copy(true, "/").is_err());
        assert!(open.check_copy(false, "/etc/passwd").is_ok());
    }

    #[test]
    fn mounts_match_one_to_one() {
        let text = r#"{"version":1,"mounts":[{"source":"tmpfs","target":"/a","readonly":false}]}"#;
        let mount = AllowedMount {
            source: "tmpfs".into(),
            target: "/a".into(),
            readonly: false,
        };
        assert!(policy(text)
            .check_box(std::slice::from_ref(&mount), &[], false, false)
            .is_ok());
        assert!(policy(text).check_box(&[], &[], false, false).is_err());
        assert!(policy(text)
            .check_box(&[mount.clone(), mount], &[], false, false)
            .is_err());
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in [
            r#"{}"#,
            r#"{"version":2}"#,
            r#"{"version":1,"program":["*"]}"#,
            r#"{"version":1,"users":["0"]}"#,
            r#"{"version":1,"network":"host"}"#,
        ] {
            let fields = Fields::parse(text.as_bytes(), "policy").unwrap();
            assert!(Policy::read(fields).is_err(), "{text}");
        }
    }

    /// A request of the host's: `base` with the fields of `change`.
    fn asked(base: &Value, change: Value) -> Fields {
        let (Value::Object(mut pairs), Value::Object(changed)) = (base.clone(), change) else {
            panic!("not objects")
        };
        for (key, value) in changed {
            match pairs.iter_mut().find(|(known, _)| *known == key) {
                Some(pair) => pair.1 = value,
                None => pairs.push((key, value)),
            }
        }
        Fields::of(Value::Object(pairs), "").unwrap()
    }

    fn decide(policy: &Policy, mut request: Fields, main: bool) -> Result<(), Refusal> {
        let (name, capabilities) = (request.needed_text("program")?, request.texts("capabilities")?);
        let env: Vec<_> = request
            .texts("env")?
            .into_iter()
            .map(|name| (name, String::new()))
            .collect();
        let user = request.number("user", -1, 1 << 31)?.unwrap_or(0);
        let tty = request.flag("tty", false)?;
        let program = Program {
            name: &name,
            env: &env,
            user,
            tty,
            capabilities: &capabilities,
        };
        policy.check_program(&program, main)?;
        if !main {
            return Ok(());
        }
        let mounts = request.objects("mounts")?.into_iter().map(AllowedMount::read);
        let network = request.text("network")?.as_deref() == Some("given");
        policy.check_box(
            &mounts.collect::<Result<Vec<_>, _>>()?,
            &request.texts("devices")?,
            network,
            request.flag("writable_root", false)?,
        )
    }

    #[test]
    fn decisions_are_those_of_every_implementation() {
        let bytes = include_bytes!("../../tests/golden/policy/decisions.json");
        let mut golden = Fields::parse(bytes, "").unwrap();
        let policy = Policy::read(golden.object("policy").unwrap().unwrap()).unwrap();
        let start = golden.take("start").unwrap();
        for (list, main) in [("starts", true), ("execs", false)] {
            let decisions = golden.objects(list).unwrap();
            assert!(decisions.len() > 3);
            for mut decision in decisions {
                let change = decision.take("change").unwrap();
                let expected = decision.text("denied").unwrap();
                let got = decide(&policy, asked(&start, change.clone()), main);
                assert_eq!(got.err().map(|refusal| refusal.field), expected, "{change:?}");
            }
        }
        for mut copy in golden.objects("copies").unwrap() {
            let inward = copy.needed_text("field").unwrap() == "copy_in";
            let path = copy.needed_text("path").unwrap();
            let got = policy
                .check_copy(inward, &path)
                .err()
                .map(|refusal| refusal.field);
            assert_eq!(got, copy.text("denied").unwrap(), "{path}");
        }
    }
}
