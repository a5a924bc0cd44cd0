//! `crfs metrics`.

use super::args::MetricsArgs;
use super::environment::Environment;
use super::{Failure, complain, options, print};
use crate::errors::chain;
use crate::metrics::together;
use crate::podman::commands;
use crate::serve::status;

pub(super) fn metrics(args: &MetricsArgs, environment: &Environment) -> Result<(), Failure> {
    let (mounts, unasked) = status::metrics(&environment.state_dirs());
    let (mut texts, mut silent) = (Vec::new(), Vec::new());
    for (dir, told) in mounts {
        match told {
            Ok(text) => texts.push(text),
            Err(error) => silent.push(format!("{}: its server does not tell its metrics: {error}", dir.display())),
        }
    }
    match options::ask_store(&args.place, environment, commands::metrics) {
        Ok(told) => texts.extend(told),
        Err(why) => silent.push(why),
    }
    silent.extend(unasked.map(|error| chain(&error)));
    print(&together(&texts))?;
    silent.iter().for_each(|message| complain(message));
    if silent.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}
