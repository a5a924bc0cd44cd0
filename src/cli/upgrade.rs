//! `crfs upgrade`.

use std::path::PathBuf;

use super::args::{StorePlaceArgs, UpgradeArgs};
use super::environment::Environment;
use super::{Failure, complain, format, options, print};
use crate::podman::commands;
use crate::serve::upgrade;

pub(super) fn upgrade(args: &UpgradeArgs, environment: &Environment) -> Result<(), Failure> {
    let state_dirs = environment.state_dirs();
    let of_store = |target| of_store(target, &args.place, environment);
    let (upgraded, store) = match &args.target {
        Some(target) => match upgrade::upgrade(target, &state_dirs)? {
            Some(upgraded) => (vec![upgraded], None),
            None => (Vec::new(), Some(of_store(Some(target)).ok_or_else(|| upgrade::not_mounted(target))?)),
        },
        None => (upgrade::upgrade_all(&state_dirs), of_store(None)),
    };
    let upgraded = upgraded.into_iter().map(|(dir, done)| (dir, done.map_err(|error| error.chain())));
    let mut outcome = Ok(());
    for (dir, done) in upgraded.chain(store) {
        match done {
            Ok(()) => print(
                &(format::printable(&format!("{}: served by the crfs that is installed now", dir.display())) + "\n"),
            )?,
            Err(why) => {
                complain(&why);
                outcome = Err(Failure::Reported);
            }
        }
    }
    outcome
}

/// Lets the crfs that is installed now serve a store, if it is served.
fn of_store(
    target: Option<&PathBuf>,
    place: &StorePlaceArgs,
    environment: &Environment,
) -> Option<(PathBuf, Result<(), String>)> {
    let place = StorePlaceArgs { root: target.or(place.root.as_ref()).cloned(), state: place.state.clone() };
    let mut root = PathBuf::new();
    let asked = options::ask_store(&place, environment, |paths| {
        root = paths.root.clone();
        commands::upgrade(paths)
    });
    asked.transpose().map(|upgraded| (root, upgraded))
}
