//! What the host wrote into the initial file system before this guest started. Pure.

use crate::fields::{Fields, Refusal};
use crate::network::Interface;
use crate::policy::{AllowedMount, Policy};

/// What is mounted over the root.
pub struct Mount {
    pub target: String,
    pub readonly: bool,
    pub what: What,
}

pub enum What {
    /// An empty file system in memory, of so many bytes.
    Tmpfs(i64),
    /// A folder or file of the host, by its name in what the host shares.
    Share { name: String, folder: bool },
}

pub struct Config {
    pub policy: Policy,
    pub hostname: String,
    /// Block device with an EROFS image.
    pub root: String,
    /// Block device with an ext4 file system that takes writes; without it the root is read-only.
    pub upper: Option<String>,
    /// Each after those that it is mounted on.
    pub mounts: Vec<Mount>,
    pub interface: Option<Interface>,
    pub pids: Option<i64>,
    pub files: Option<i64>,
}

impl Config {
    /// Read it and hold it against its own policy.
    pub fn read(bytes: &[u8]) -> Result<Config, Refusal> {
        let mut fields = Fields::parse(bytes, "")?;
        fields.needed_number("version", 1, 1)?;
        // No policy denies everything, and so does the default.
        let policy = fields
            .object("policy")?
            .map(Policy::read)
            .transpose()?
            .unwrap_or_default();
        let mut mounts = Vec::new();
        let mut asked = Vec::new();
        for mut mount in fields.objects("mounts")? {
            let source = mount.needed_text("source")?;
            let target = mount.needed_text("target")?;
            let readonly = mount.flag("readonly", true)?;
            let what = match mount.text("share")? {
                Some(name) => What::Share {
                    name,
                    folder: mount.flag("folder", true)?,
                },
                None => What::Tmpfs(mount.needed_number("size", 4096, i64::MAX)?),
            };
            mount.done()?;
            asked.push(AllowedMount {
                source,
                target: target.clone(),
                readonly,
            });
            mounts.push(Mount {
                target,
                readonly,
                what,
            });
        }
        mounts.sort_by(|one, other| one.target.cmp(&other.target));
        let config = Config {
            policy,
            hostname: fields.text("hostname")?.unwrap_or_default(),
            root: fields.text("root")?.unwrap_or_default(),
            upper: fields.text("upper")?,
            mounts,
            interface: fields.object("interface")?.map(Interface::read).transpose()?,
            pids: fields.number("pids", 1, 1 << 22)?,
            files: fields.number("files", 16, 1 << 30)?,
        };
        fields.done()?;
        config
            .policy
            .check_box(&asked, &[], config.interface.is_some(), config.upper.is_some())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_its_policy_does_not_allow_is_refused() {
        let bytes = br#"{"version":1,"policy":{"version":1},"upper":"/dev/vdb"}"#;
        assert_eq!(Config::read(bytes).err().unwrap().field, "writable_root");
        let bytes = br#"{"version":1,"policy":{"version":1},
            "mounts":[{"source":"/srv","target":"/a","share":"0"}]}"#;
        assert_eq!(Config::read(bytes).err().unwrap().field, "mounts");
        assert!(Config::read(br#"{"version":1,"policy":{"version":1}}"#).is_ok());
    }

    #[test]
    fn mounts_come_after_what_they_are_mounted_on() {
        let bytes = br#"{"version":1,"policy":{"version":1,"mounts":[
            {"source":"tmpfs","target":"/a/b"},{"source":"/srv","target":"/a"}]},
            "mounts":[{"source":"tmpfs","target":"/a/b","size":4096},
            {"source":"/srv","target":"/a","share":"0"}]}"#;
        let config = Config::read(bytes).ok().unwrap();
        let targets: Vec<&str> = config.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b"]);
    }

    #[test]
    fn no_policy_denies_everything() {
        let config = Config::read(br#"{"version":1}"#).ok().unwrap();
        assert_eq!(config.policy, Policy::default());
    }
}
