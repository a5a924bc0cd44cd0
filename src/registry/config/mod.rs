//! What this machine says of how registries are reached: podman's registries.conf, containerd's hosts.toml, and who is trusted where.

mod endpoint;

pub(super) use endpoint::{Certificates, Endpoint, Scheme};
