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

pub mod background;
mod config;
mod control;
mod error;
mod escape;
mod event;
mod fusedev;
pub mod image;
pub mod indexes;
pub mod inspect;
mod layer;
pub mod log;
pub mod look;
mod mounts;
mod notify;
pub mod options;
pub mod server;
mod signals;
mod state;
pub mod status;
pub mod unmount;
mod wire;

pub use control::Activity;
pub use error::Error;
pub use escape::escape;
pub use event::{Event, Ready, Report};
pub use notify::notify;
pub use state::state_dirs;
