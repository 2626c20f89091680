//! What the host wrote into the initial file system before this guest started. Pure.

use crate::fields::{Fields, Refusal};
use crate::network::Interface;
use crate::policy::{AllowedMount, Policy};

pub struct Tmpfs {
    pub target: String,
    pub readonly: bool,
    pub size: i64,
}

pub struct Config {
    pub policy: Policy,
    pub hostname: String,
    /// Block device with an EROFS image.
    pub root: String,
    /// Block device with an ext4 file system that takes writes; without it the root is read-only.
    pub upper: Option<String>,
    pub tmpfs: Vec<Tmpfs>,
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
        let mut tmpfs = Vec::new();
        let mut mounts = Vec::new();
        for mut mount in fields.objects("tmpfs")? {
            let size = mount.needed_number("size", 4096, i64::MAX)?;
            let target = mount.needed_text("target")?;
            let readonly = mount.flag("readonly", false)?;
            mount.done()?;
            mounts.push(AllowedMount {
                source: "tmpfs".to_string(),
                target: target.clone(),
                readonly,
            });
            tmpfs.push(Tmpfs {
                target,
                readonly,
                size,
            });
        }
        let config = Config {
            policy,
            hostname: fields.text("hostname")?.unwrap_or_default(),
            root: fields.text("root")?.unwrap_or_default(),
            upper: fields.text("upper")?,
            tmpfs,
            interface: fields.object("interface")?.map(Interface::read).transpose()?,
            pids: fields.number("pids", 1, 1 << 22)?,
            files: fields.number("files", 16, 1 << 30)?,
        };
        fields.done()?;
        config
            .policy
            .check_box(&mounts, &[], config.interface.is_some(), config.upper.is_some())?;
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
        let bytes = br#"{"version":1,"policy":{"version":1},"tmpfs":[{"target":"/a","size":4096}]}"#;
        assert_eq!(Config::read(bytes).err().unwrap().field, "mounts");
        assert!(Config::read(br#"{"version":1,"policy":{"version":1}}"#).is_ok());
    }

    #[test]
    fn no_policy_denies_everything() {
        let config = Config::read(br#"{"version":1}"#).ok().unwrap();
        assert_eq!(config.policy, Policy::default());
    }
}
