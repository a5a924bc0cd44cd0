//! What the tests stand on: a place of their own, commands that cannot hang, mounts and registries that end with their test.

pub(crate) mod busy;
pub(crate) mod command;
pub(crate) mod compare;
pub(crate) mod counts;
pub(crate) mod fakes;
pub(crate) mod fixtures;
pub(crate) mod lab;
pub(crate) mod lies;
pub(crate) mod mount;
pub(crate) mod podman;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod snapshots;
pub(crate) mod tree;

pub(crate) use command::{run, until};
pub(crate) use fixtures::{Fixture, LAZY, PLAIN};
pub(crate) use lab::Lab;
pub(crate) use mount::{Mount, Overlay};
pub(crate) use proxy::Proxy;
pub(crate) use registry::Registry;
