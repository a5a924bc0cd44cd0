//! The life of a server, from its set-up to its end, and the commands that ask servers.
//!
//! ```text
//! crfs mount --> background: spawns "crfs serve" --- options (JSON) --> stdin of the server
//!                                               <-- events (JSON lines) - its stdout
//!
//! a service (service.rs): a mount's image (mounted.rs), a store
//!     └── in the frame of all servers (server.rs): set-up, signals, readiness, end
//!             ├── a frontend (frontend.rs) shows it to the kernel: FUSE (fuse.rs)
//!             └── a control socket (control.rs) answers those who ask (ask.rs): status, metrics, leave, and what is the service's own
//! ```
//!
//! The state directory of a mount (state.rs) is what `crfs status` and `crfs umount` know it by.

pub(crate) mod ask;
pub mod background;
pub(crate) mod control;
mod doing;
mod error;
mod event;
pub mod explain;
pub(crate) mod frontend;
pub(crate) mod fuse;
pub mod holders;
pub(crate) mod kept;
pub(crate) mod layers;
pub mod listen;
pub mod log;
pub mod mount;
mod mounted;
pub mod options;
pub mod remount;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod signals;
pub(crate) mod state;
pub mod status;
pub mod unmount;
pub mod upgrade;

pub use ask::Unanswered;

/// Whether the mount table has this as the source of stores.
#[must_use]
pub fn is_stores(source: &str) -> bool {
    source == crate::kernel::mounts::STORE
}

pub use crate::keeper::Words;
pub use error::Error;
pub use event::{Event, Ready, Report};
pub use kept::Keeper;
pub use service::Activity;
pub use signals::before_the_end;
pub use state::state_dirs;
