//! The environment, read once, and what follows from it. Nothing else in crfs reads a variable of its own.
//!
//! (HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are read by the HTTP and TLS libraries.)

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::fs::tree::OpaqueXattr;
use crate::keeper::{self, Manager};
use crate::registry::{Places, Surroundings};
use crate::serve::state_dirs;
use crate::sys::set_variable;

/// CAP_SYS_ADMIN in the bit sets of /proc/PID/status (capabilities(7)).
const SYS_ADMIN: u64 = 1 << 21;

#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    /// Of the user, also where a user namespace calls them root.
    pub(super) uid: u32,
    /// `CRFS_*`, and those of other programs that stand for an option; configuration/ reads them.
    pub(super) variables: BTreeMap<String, OsString>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) cache_home: Option<PathBuf>,
    pub(super) config_home: Option<PathBuf>,
    pub(super) data_home: Option<PathBuf>,
    /// $CONTAINERS_STORAGE_CONF: where podman's storage.conf is.
    pub(super) storage_conf: Option<PathBuf>,
    /// $CONTAINERS_REGISTRIES_CONF: podman's registries.conf.
    pub(super) registries_conf: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
    pub(super) rust_log: Option<String>,
    pub(super) notify_socket: Option<OsString>,
    /// Whether this process may set trusted.* xattrs, and so whether its overlays look at them.
    pub(super) is_system_admin: bool,
}

impl Environment {
    pub(super) fn read() -> Self {
        let value = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name| value(name).map(PathBuf::from);
        let proc = |file| std::fs::read_to_string(Path::new("/proc/self").join(file)).unwrap_or_default();
        // In `podman unshare` everybody is called root; it says who they are.
        let rootless = value("_CONTAINERS_ROOTLESS_UID").and_then(|uid| uid.to_str()?.parse().ok());
        Self {
            uid: rootless.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
            variables: options(),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            cache_home: path("XDG_CACHE_HOME"),
            config_home: path("XDG_CONFIG_HOME"),
            data_home: path("XDG_DATA_HOME"),
            storage_conf: path("CONTAINERS_STORAGE_CONF"),
            // The latter is its older name.
            registries_conf: path("CONTAINERS_REGISTRIES_CONF").or_else(|| path("REGISTRIES_CONFIG_PATH")),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            rust_log: value("RUST_LOG").map(|text| text.to_string_lossy().into_owned()),
            notify_socket: Self::notify_socket(),
            is_system_admin: is_system_admin(&proc("status"), &proc("uid_map")),
        }
    }

    /// The directories in which programs are looked for.
    pub(super) fn path() -> Vec<PathBuf> {
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
    }

    /// The variables about proxies that are set, to nothing as well: that hides the other spelling. Their values may hold passwords.
    pub(super) fn proxies() -> Vec<(String, String)> {
        let names = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];
        let names = names.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_lowercase()]);
        let set = names.filter_map(|name| std::env::var_os(&name).map(|value| (name, value)));
        set.map(|(name, value)| (name, value.to_string_lossy().into_owned())).collect()
    }

    /// That of a helper of mount(8), which the system may start with next to nothing in it: credential helpers, too, want a `HOME`. The service manager
    /// that has started mount(8) is told nothing: it waits for the end of that.
    ///
    /// To be called while the process has one thread.
    pub(super) fn of_helper() -> Self {
        let has_home = std::env::var_os("HOME").is_some_and(|home| !home.is_empty());
        let of_user = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
        if let Some(home) = (!has_home).then(of_user).flatten() {
            set_variable("HOME", home.as_os_str());
        }
        Self { notify_socket: None, ..Self::read() }
    }

    /// Alone, for a process that is to stay small.
    pub(super) fn notify_socket() -> Option<OsString> {
        std::env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty())
    }

    /// What the service manager says that has started this process. Alone as well.
    pub(super) fn manager() -> Manager {
        let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(std::env::var_os);
        let passed_on = keeper::passed_on(std::process::id(), [&pid, &count, &names].map(|value| value.as_deref()));
        Manager { socket: Self::notify_socket(), passed_on }
    }

    /// Whether the terminal can do nothing but write lines.
    pub(super) fn is_dumb_terminal() -> bool {
        std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
    }

    /// Where the cache is kept without `--cache-dir`.
    pub(super) fn cache_dir(&self) -> PathBuf {
        if self.uid == 0 {
            return PathBuf::from("/var/cache/crfs");
        }
        let in_home = self.home.as_ref().filter(|home| home.is_absolute()).map(|home| home.join(".cache"));
        let in_home = self.cache_home.clone().filter(|dir| dir.is_absolute()).or(in_home).map(|base| base.join("crfs"));
        // Nobody else can have been there first; in /var/tmp they can, and crfs looks whether they were (sys/trusted.rs).
        let runtime = || self.runtime_dir.as_ref().filter(|dir| dir.is_absolute()).map(|dir| dir.join("crfs-cache"));
        in_home.or_else(runtime).unwrap_or_else(|| self.in_var_tmp())
    }

    fn in_var_tmp(&self) -> PathBuf {
        PathBuf::from(format!("/var/tmp/crfs-{}", self.uid))
    }

    /// Where the store is without `--root`.
    pub(super) fn store_dir(&self) -> PathBuf {
        if self.uid == 0 {
            return PathBuf::from("/var/lib/crfs/store");
        }
        self.data_dir().join("crfs/store")
    }

    /// $XDG_DATA_HOME, or what stands for it.
    pub(super) fn data_dir(&self) -> PathBuf {
        let in_home = self.home.as_ref().filter(|home| home.is_absolute()).map(|home| home.join(".local/share"));
        let base = self.data_home.clone().filter(|dir| dir.is_absolute()).or(in_home);
        base.unwrap_or_else(|| self.in_var_tmp())
    }

    /// $XDG_CONFIG_HOME, or what stands for it.
    pub(super) fn config_dir(&self) -> PathBuf {
        let in_home = self.home.as_ref().map(|home| home.join(".config"));
        self.config_home.clone().filter(|dir| dir.is_absolute()).or(in_home).unwrap_or_else(|| "/etc".into())
    }

    /// Where this machine's configuration of registries is.
    pub(super) fn places(&self) -> Places {
        let absolute = |path: &'_ Option<PathBuf>| path.clone().filter(|path| path.is_absolute());
        let (home, cache_home) = (absolute(&self.home), absolute(&self.cache_home));
        Places::of(&Surroundings {
            registries_conf: self.registries_conf.as_deref(),
            home: home.as_deref(),
            cache_home: cache_home.as_deref(),
            is_root: self.uid == 0,
        })
    }

    pub(super) fn state_dirs(&self) -> Vec<PathBuf> {
        state_dirs(self.uid, self.runtime_dir.as_deref())
    }

    pub(super) fn opaque_xattr(&self) -> OpaqueXattr {
        if self.is_system_admin { OpaqueXattr::Trusted } else { OpaqueXattr::User }
    }
}

/// The variables that stand for options, if they are not empty.
fn options() -> BTreeMap<String, OsString> {
    let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let is_one = |name: &str| name.starts_with("CRFS_") || name == "REGISTRY_AUTH_FILE";
    named.filter(|(name, value)| is_one(name) && !value.is_empty()).collect()
}

/// CAP_SYS_ADMIN, and in the initial user namespace: the one whose uid map is the identity over all of them.
fn is_system_admin(status: &str, uid_map: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    effective & SYS_ADMIN != 0 && uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_xdg_wants_it() {
        let mut environment = Environment { uid: 7, home: Some("/home/u".into()), ..Environment::default() };
        assert_eq!(environment.cache_dir(), Path::new("/home/u/.cache/crfs"));
        environment.cache_home = Some("/c".into());
        assert_eq!(environment.cache_dir(), Path::new("/c/crfs"));
        environment.cache_home = Some("relative".into());
        assert_eq!(environment.cache_dir(), Path::new("/home/u/.cache/crfs"), "the XDG rules ignore relative paths");
        environment.home = None;
        assert_eq!(environment.cache_dir(), Path::new("/var/tmp/crfs-7"));
        environment.runtime_dir = Some("/run/user/7".into());
        assert_eq!(environment.cache_dir(), Path::new("/run/user/7/crfs-cache"));
        environment.uid = 0;
        assert_eq!(environment.cache_dir(), Path::new("/var/cache/crfs"));
    }

    #[test]
    fn only_the_administrator_of_the_machine_uses_trusted_xattrs() {
        let (all, none) = ("Name:\tx\nCapEff:\t000001ffffffffff\n", "CapEff:\t0000000000000000\n");
        let (initial, inner) = ("         0          0 4294967295\n", "0 1000 1\n1 100000 65536\n");
        assert!(is_system_admin(all, initial));
        assert!(!is_system_admin(all, inner));
        assert!(!is_system_admin(none, initial));
        assert!(!is_system_admin("", ""));
    }
}
