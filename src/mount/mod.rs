//! Puts a mount together and owns its life.
//!
//! ```text
//! crfs mount --> background: spawns "crfs serve" --- options (JSON) --> stdin of the server
//!                                               <-- events (JSON lines) - its stdout
//!
//! server:  image (resolve, open the layers) -> start (state directory, /dev/fuse, mount(2)) -> serve -> the kernel says ENODEV
//! ```
//!
//! The state directory of a mount (state.rs) is what `crfs status` and `crfs umount` know it by.

mod again;
mod attach;
pub mod background;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod doing;
mod error;
pub(crate) mod escape;
mod event;
pub(crate) mod fusedev;
mod here;
pub mod holders;
pub mod image;
pub mod indexes;
pub mod inspect;
pub(crate) mod known;
pub(crate) mod layer;
pub mod log;
pub mod look;
mod lowers;
pub(crate) mod mounts;
mod notify;
pub mod options;
pub mod server;
pub(crate) mod session;
pub(crate) mod signals;
mod silence;
pub(crate) mod state;
pub mod status;
pub(crate) mod tar_splits;
mod toc;
pub mod unmount;
mod wire;

pub use control::Activity;
pub use error::{Error, chain};
pub use escape::escape;
pub use event::{Event, Ready, Report};
pub use notify::notify;
pub use state::state_dirs;
