//! Where the machine's configuration is, and what was said of it on the command line.

use std::path::{Path, PathBuf};

/// Filled in by cli/, with absolute paths. The default reads nothing, as crfs did before it knew these files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// `$CONTAINERS_REGISTRIES_CONF`: must be there, and takes the place of the others.
    pub registries_conf: Option<PathBuf>,
    /// `~/.config/containers`: registries.conf, registries.conf.d and policy.json of the user.
    pub user: Option<PathBuf>,
    /// `/etc/containers`: the same of the machine.
    pub system: Option<PathBuf>,
    /// short-name-aliases.conf, which podman writes.
    pub aliases: Option<PathBuf>,
    /// Directories `certs.d`, in the order in which they are looked into.
    pub certs: Vec<PathBuf>,
    /// `--hosts-dir`: directories of containerd's hosts.toml; registries.conf and certs.d are not read then.
    pub hosts_dir: Option<PathBuf>,
    /// `--cert-dir`: for all hosts, instead of all others.
    pub cert_dir: Option<PathBuf>,
    /// `--tls-verify`: for all hosts, instead of what the files say.
    pub tls_verify: Option<bool>,
}

/// What decides where the configuration is, as plain values.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// `$CONTAINERS_REGISTRIES_CONF`, or `$REGISTRIES_CONFIG_PATH`, its older name.
    pub registries_conf: Option<&'a Path>,
    pub home: Option<&'a Path>,
    /// `$XDG_CACHE_HOME`
    pub cache_home: Option<&'a Path>,
    pub is_root: bool,
}

impl Places {
    /// The places where podman looks. It does not ask `$XDG_CONFIG_HOME` for them.
    #[must_use]
    pub fn of(surroundings: &Surroundings<'_>) -> Self {
        let Surroundings { registries_conf, home, cache_home, is_root } = surroundings;
        let user = home.map(|home| home.join(".config/containers"));
        let cache = match is_root {
            true => Some(PathBuf::from("/var/cache")),
            false => cache_home.map(Path::to_owned).or_else(|| home.map(|home| home.join(".cache"))),
        };
        let certs = user.iter().map(|dir| dir.join("certs.d"));
        Self {
            registries_conf: registries_conf.map(Path::to_owned),
            certs: certs.chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]).collect(),
            user,
            system: Some("/etc/containers".into()),
            aliases: cache.map(|dir| dir.join("containers/short-name-aliases.conf")),
            ..Self::default()
        }
    }

    /// All paths below another root.
    #[cfg(test)]
    pub(super) fn below(self, root: &Path) -> Self {
        let below = |path: PathBuf| match path.strip_prefix("/") {
            Ok(rest) if path != Path::new("/dev/null") => root.join(rest),
            _ => path,
        };
        Self {
            registries_conf: self.registries_conf.map(below),
            user: self.user.map(below),
            system: self.system.map(below),
            aliases: self.aliases.map(below),
            certs: self.certs.into_iter().map(below).collect(),
            ..self
        }
    }
}
