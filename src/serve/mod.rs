//! The life of a server, from its set-up to its end, and the commands that ask servers.
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
pub(crate) mod control;
pub(crate) mod doing;
mod error;
mod event;
pub mod holders;
pub mod log;
mod mounted;
mod notify;
pub mod options;
pub mod server;
pub(crate) mod session;
pub(crate) mod signals;
pub(crate) mod state;
pub mod status;
pub mod unmount;

pub use control::Activity;
pub use error::Error;
pub use event::{Event, Ready, Report};
pub use notify::notify;
pub use state::state_dirs;
