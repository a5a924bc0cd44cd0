//! `crfs snapshotter`.

use std::ffi::OsString;

use super::args::{
    SnapshotterCommand, SnapshotterConfigArgs, SnapshotterPlaceArgs, SnapshotterServeArgs, StorePrefetchArg,
};
use super::environment::Environment;
use super::format::printable;
use super::options::{self, PATIENCE};
use super::store::version_of;
use super::{Failure, complain, print};
use crate::keeper;
use crate::podman::{LayerOptions, Paths, ServeOptions as LayerServer};
use crate::serve::options::LogOptions;
use crate::snapshotter::containerd::{Names, Version, config};
use crate::snapshotter::{self, ServeOptions, layers_dir};

pub(super) fn snapshotter(
    command: SnapshotterCommand,
    log: &LogOptions,
    environment: &Environment,
) -> Result<(), Failure> {
    match command {
        SnapshotterCommand::Serve(args) => serve(&args, log, environment),
        SnapshotterCommand::Config(args) => print_config(&args),
    }
}

fn serve(args: &SnapshotterServeArgs, log: &LogOptions, environment: &Environment) -> Result<(), Failure> {
    let any = OsString::from("localhost/any:latest");
    let (address, root) = rooted(&args.place)?;
    let source = options::source(&any, &args.access, &args.cache, environment)?;
    let layers = LayerServer {
        paths: Paths::new(&layers_dir(&root), None),
        cache_dir: options::cache_dir(args.cache.cache_dir.as_deref(), environment)?,
        cache_size: args.cache.cache_size,
        podman: Vec::new(),
        guesses: args.prefetch != StorePrefetchArg::None,
        allow_other: nix::unistd::geteuid().is_root(),
        metrics_listen: None,
        layers: Some(LayerOptions { source, deadline: args.access.io_deadline }),
        log: log.clone(),
    };
    let manager = Environment::notify_socket();
    let ready = || {
        complain(&format!("answering at {}", printable(&address.display().to_string())));
        if let Some(manager) = &manager {
            // Whoever listens there may be gone.
            drop(keeper::notify(manager, std::process::id()));
        }
    };
    let options = ServeOptions { address: address.clone(), root, layers, log: log.clone() };
    Ok(snapshotter::serve(options, ready)?)
}

fn rooted(place: &SnapshotterPlaceArgs) -> Result<(std::path::PathBuf, std::path::PathBuf), options::UsageError> {
    Ok((options::rooted(&place.address)?, options::rooted(&place.root)?))
}

fn print_config(args: &SnapshotterConfigArgs) -> Result<(), Failure> {
    let (address, root) = rooted(&args.place)?;
    let (version, said) = match &args.containerd {
        Some(text) => {
            let version = Version::find(text).ok_or_else(|| options::UsageError::NoVersion { text: text.clone() })?;
            (version, format!("for containerd {text}"))
        }
        None => match version_of("containerd", PATIENCE) {
            Ok(Some(text)) if Version::find(&text).is_some() => {
                (Version::find(&text).unwrap_or(Version::CURRENT), format!("for {text}"))
            }
            _ => (
                Version::CURRENT,
                "for containerd 2.4: no containerd was found; --containerd says another version".to_owned(),
            ),
        },
    };
    let names = Names { name: &args.name, address: &address, root: &root };
    Ok(print(&format!(
        "# {}. docs/containerd.md says what each line is for.\n{}",
        printable(&said),
        config(version, names)
    ))?)
}
