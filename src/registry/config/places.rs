//! Where the machine's configuration is, and what was said of it on the command line.

use std::path::PathBuf;

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
