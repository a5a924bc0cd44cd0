//! What was typed, with the environment, becomes what is meant.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use super::Failure;
use super::args::{
    AccessArgs, CachePlaceArgs, FrontendArg, ImageArgs, MountArgs, OpaqueArg, PrefetchArg, StorePlaceArgs,
};
use super::environment::Environment;
use super::progress::is_quiet;
use crate::errors::chain;
use crate::fs::tree::OpaqueXattr;
use crate::image::options::ImageOptions;
use crate::image::short;
use crate::podman::Paths;
use crate::registry::{self, AuthPlaces, ImageRef, Places, Platform, SociChoice, short_name};
use crate::serve::listen::Listen;
use crate::serve::options::{FrontendChoice, LogOptions, MountOptions, Prefetch};
use crate::sys::{limit, trusted};

/// How long a filesystem may take to say that a file is there.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why what was typed has no meaning.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("IMAGE is not UTF-8")]
    NotUtf8,
    #[error("{0}")]
    Image(#[from] crate::registry::Error),
    #[error("--json and --svg - would both write to standard output; give --svg a file")]
    TwoOutputs,
    #[error("--name is for one IMAGE at a time")]
    NameOfSeveral,
    #[error(
        "standard input has no credentials as podman hands them over: `crfs store auth-helper` is started by podman"
    )]
    NoCredentials,
    #[error("--opaque-xattr goes with --layer")]
    OpaqueWithoutLayer,
    #[error("the credential file {path:?} cannot be read: {source}; make it with podman login --authfile")]
    AuthFile { path: PathBuf, source: std::io::Error },
    #[error("the directory {path:?} of --hosts-dir cannot be read: {source}; give containerd's config_path")]
    HostsDir { path: PathBuf, source: std::io::Error },
    #[error("the store's directory {path:?} cannot be used: {source}; give another with --root")]
    Place { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is no store of podman's own: {source}; give the graphRoot that `podman info` shows")]
    PodmanRoot { path: PathBuf, source: std::io::Error },
    #[cfg(feature = "snapshotter")]
    #[error("{text:?} is no version of containerd; give one such as 2.4")]
    NoVersion { text: String },
    #[error("the path {path:?} cannot be made absolute: {source}; it is empty, or the working directory is gone")]
    Path { path: PathBuf, source: std::io::Error },
}

pub(super) fn log(verbose: u8, environment: &Environment) -> LogOptions {
    LogOptions { filter: environment.rust_log.clone(), verbosity: verbose, quiet: is_quiet() }
}

pub(super) fn mount(args: MountArgs, verbose: u8, environment: &Environment) -> Result<MountOptions, Failure> {
    if args.opaque_xattr.is_some() && args.layer.is_none() {
        return Err(UsageError::OpaqueWithoutLayer.into());
    }
    Ok(MountOptions {
        source: image(args.image, environment)?,
        dir: rooted(&args.dir)?,
        allow_other: args.allow_other.unwrap_or(environment.uid == 0),
        noexec: args.noexec,
        shown: None,
        words: args.settled,
        prefetch: match args.prefetch {
            PrefetchArg::None => Prefetch::None,
            PrefetchArg::Hints => Prefetch::Hints,
            PrefetchArg::All => Prefetch::All,
        },
        mount_deadline: args.mount_deadline,
        frontend: match args.frontend {
            FrontendArg::Auto => FrontendChoice::Auto,
            FrontendArg::Fuse => FrontendChoice::Fuse,
        },
        layer: args.layer,
        opaque_xattr: match args.opaque_xattr {
            Some(OpaqueArg::Trusted) => OpaqueXattr::Trusted,
            Some(OpaqueArg::User) => OpaqueXattr::User,
            None => environment.opaque_xattr(),
        },
        nfs_export: args.nfs_export,
        system_admin: environment.is_system_admin,
        state_dirs: environment.state_dirs(),
        metrics_listen: listen(args.metrics_listen.as_ref())?,
        log: log(verbose, environment),
    })
}

pub(super) fn image(args: ImageArgs, environment: &Environment) -> Result<ImageOptions, Failure> {
    let ImageArgs { reference, access, cache } = args;
    source(&reference, &access, &cache, environment)
}

/// What `image` means, by what was said of how to reach it. A registry is asked where a short name may mean several images.
pub(super) fn source(
    reference: &OsStr,
    access: &AccessArgs,
    cache: &CachePlaceArgs,
    environment: &Environment,
) -> Result<ImageOptions, Failure> {
    let text = reference.to_str().ok_or(UsageError::NotUtf8)?;
    let image = text.parse().map_err(UsageError::from)?;
    let mut options = ImageOptions {
        image: rooted_image(image)?,
        platform: access.platform.clone().unwrap_or_else(Platform::of_this_machine),
        auth_files: auth_files(access.authfile.clone(), environment)?,
        places: places(access, environment)?,
        cache_dir: cache_dir(cache.cache_dir.as_deref(), environment)?,
        cache_size: cache.cache_size,
        io_deadline: access.io_deadline,
        whole_layer_below: access.whole_layer_below,
        insecure_unverified_toc: access.insecure_unverified_toc,
        memory_limit: access.memory_limit,
        soci: match access.soci_index {
            Some(digest) => Some(SociChoice::Digest(digest)),
            None if access.soci_v1 => Some(SociChoice::Referring),
            None => Some(SociChoice::Annotated),
        },
    };
    if let Some(short) = short_name(text) {
        options.image = short::meant(&options, short)?;
    }
    Ok(options)
}

/// Where this machine's configuration of registries is, and what was said instead of it.
pub(super) fn places(access: &AccessArgs, environment: &Environment) -> Result<Places, UsageError> {
    let places = environment.places();
    Ok(Places {
        registries_conf: places.registries_conf.as_deref().map(rooted).transpose()?,
        hosts_dir: access.hosts_dir.as_deref().map(hosts_dir).transpose()?,
        cert_dir: access.cert_dir.as_deref().map(rooted).transpose()?,
        tls_verify: access.tls_verify,
        ..places
    })
}

/// One that is not there would say nothing, and the registry would be asked past its mirrors.
fn hosts_dir(path: &Path) -> Result<PathBuf, UsageError> {
    let asked = path.to_owned();
    let missing = |source| UsageError::HostsDir { path: path.to_owned(), source };
    limit::answered(PATIENCE, move || std::fs::read_dir(asked)).map_err(missing)?;
    rooted(path)
}

/// Where a store is.
pub(super) fn store(place: &StorePlaceArgs, environment: &Environment) -> Result<Paths, UsageError> {
    let root = match &place.root {
        Some(root) => rooted(root)?,
        None => rooted(&environment.store_dir())?,
    };
    let (asked, state) = (root.clone(), place.state.as_deref().map(rooted).transpose()?);
    let find = move || {
        // Before symlinks on the way are followed for good.
        match trusted::existing(&asked) {
            Err(source) if source.kind() == ErrorKind::PermissionDenied => Err(source),
            _ => Ok(Paths::new(&asked, state)),
        }
    };
    limit::answered(PATIENCE, find).map_err(|source| UsageError::Place { path: root, source })
}

/// Asks the store of a user who may have none, or none where it usually is; or says why it cannot be asked.
pub(super) fn ask_store<T>(
    place: &StorePlaceArgs,
    environment: &Environment,
    ask: impl FnOnce(&Paths) -> Result<Option<T>, crate::podman::Error>,
) -> Result<Option<T>, String> {
    match store(place, environment) {
        Ok(paths) => ask(&paths).map_err(|error| error.chain()),
        Err(UsageError::Place { source, .. })
            if place.root.is_none() && source.kind() == ErrorKind::PermissionDenied =>
        {
            Ok(None)
        }
        Err(error) => Err(chain(&error)),
    }
}

pub(super) fn cache_dir(named: Option<&Path>, environment: &Environment) -> Result<PathBuf, UsageError> {
    named.map_or_else(|| Ok(environment.cache_dir()), rooted)
}

/// One of podman's own stores that is not there would be taken for one that uses nothing.
pub(super) fn podman_root(path: &Path) -> Result<PathBuf, UsageError> {
    let missing = |source| UsageError::PodmanRoot { path: path.to_owned(), source };
    let layers = path.join("overlay-layers");
    limit::answered(PATIENCE, move || layers.metadata()).map_err(missing)?;
    rooted(path)
}

/// Where metrics are served.
pub(super) fn listen(at: Option<&Listen>) -> Result<Option<Listen>, UsageError> {
    let absolute = |at: &Listen| match at {
        Listen::Unix(path) => rooted(path).map(Listen::Unix),
        tcp @ Listen::Tcp(_) => Ok(tcp.clone()),
    };
    at.map(absolute).transpose()
}

/// The server leaves the directory in which all this was typed. A slash at the end goes: messages show the path.
pub(super) fn rooted(path: &Path) -> Result<PathBuf, UsageError> {
    let rooted = absolute(path).map_err(|source| UsageError::Path { path: path.to_owned(), source })?;
    Ok(rooted.components().collect())
}

fn rooted_image(image: ImageRef) -> Result<ImageRef, UsageError> {
    Ok(match image {
        ImageRef::Registry(reference) => ImageRef::Registry(reference),
        ImageRef::Layout { dir, tag } => ImageRef::Layout { dir: rooted(&dir)?, tag },
        ImageRef::Archive { file, tag } => ImageRef::Archive { file: rooted(&file)?, tag },
        ImageRef::DockerArchive { file, name } => ImageRef::DockerArchive { file: rooted(&file)?, name },
    })
}

/// The credential files, as absolute paths.
pub(super) fn auth_files(named: Option<PathBuf>, environment: &Environment) -> Result<Vec<PathBuf>, UsageError> {
    // The default places may be empty, one that was named may not.
    if let Some(path) = &named {
        let asked = path.clone();
        let late = || Err(ErrorKind::TimedOut.into());
        let found = limit::within(PATIENCE, move || std::fs::metadata(asked)).unwrap_or_else(late);
        found.map_err(|source| UsageError::AuthFile { path: path.clone(), source })?;
    }
    let places = AuthPlaces {
        authfile: named,
        xdg_runtime_dir: environment.runtime_dir.clone(),
        xdg_config_home: environment.config_home.clone(),
        docker_config: environment.docker_config.clone(),
        home: environment.home.clone(),
        uid: environment.uid,
    };
    registry::auth_files(&places).iter().map(|path| rooted(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment { uid: 7, home: Some("/home/u".into()), ..Environment::default() }
    }

    fn paths(named: Option<&str>, environment: &Environment) -> Vec<String> {
        let files = auth_files(named.map(PathBuf::from), environment).unwrap();
        files.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn credentials_are_looked_for_where_podman_does() {
        let mut environment = environment();
        let usual = ["/home/u/.config/containers/auth.json", "/home/u/.docker/config.json"];
        assert_eq!(paths(None, &environment)[1..], usual);
        environment.runtime_dir = Some("/run/user/7".into());
        environment.config_home = Some("/c".into());
        let all = ["/run/user/7/containers/auth.json", "/c/containers/auth.json", "/home/u/.docker/config.json"];
        assert_eq!(paths(None, &environment), all);
        assert_eq!(paths(Some("/etc/passwd"), &environment), ["/etc/passwd"]);
        let missing = auth_files(Some("/nowhere/auth.json".into()), &environment);
        assert!(matches!(missing, Err(UsageError::AuthFile { .. })), "one that was named must be there");
    }

    #[test]
    fn where_a_user_can_have_no_store_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        // As /tmp is.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink("/", &theirs).unwrap();
        if std::os::unix::fs::lchown(&theirs, Some(4242), None).is_err() {
            return;
        }
        let environment = Environment { home: Some(theirs.clone()), ..environment() };
        let asked = |place: &StorePlaceArgs| ask_store(place, &environment, |_| Ok(Some(7)));
        assert_eq!(asked(&StorePlaceArgs { root: None, state: None }), Ok(None));
        let refused = asked(&StorePlaceArgs { root: Some(theirs.join("s")), state: None }).unwrap_err();
        assert!(refused.contains("belongs to user 4242"), "{refused}");
        assert_eq!(asked(&StorePlaceArgs { root: Some("/nowhere".into()), state: None }), Ok(Some(7)));
    }

    #[test]
    fn paths_do_not_depend_on_where_the_server_is() {
        let layout = ImageRef::Layout { dir: "a/b".into(), tag: None };
        let here = std::env::current_dir().unwrap();
        assert_eq!(rooted_image(layout).unwrap(), ImageRef::Layout { dir: here.join("a/b"), tag: None });
        assert!(matches!(rooted(Path::new("")), Err(UsageError::Path { .. })));
        assert_eq!(rooted(Path::new("/s/store//")).unwrap().as_os_str(), "/s/store");
        assert_eq!(rooted(Path::new("/")).unwrap().as_os_str(), "/");
    }
}
