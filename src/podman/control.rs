//! What a store's server is asked besides what all servers are (serve/control.rs), and who asks it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layers::held::{Held, Holding};
use super::open::Listing;
use super::paths::Paths;
use super::{Error, Store, share};
use crate::fetch::Layer;
use crate::image::engine::Common;
use crate::image::options::ImageOptions;
use crate::image::{Event, Report};
use crate::kernel::fusedev::Detach;
use crate::registry::Given;
use crate::serve::ask::{self, SILENCE};
use crate::serve::service::{Activity, Service};
use crate::serve::{Unanswered, control};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Add {
        source: Box<ImageOptions>,
        name: Option<String>,
        full: bool,
    },
    Remove {
        names: Vec<String>,
        podman: Vec<PathBuf>,
    },
    List,
    Share {
        user: String,
        stop: bool,
    },
    /// By which podman pulls.
    Credentials(Given),
    Layers(Holding),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Those that it is about.
    Images(Vec<Listing>),
    Held(Vec<Held>),
}

impl Service for Store {
    const KIND: &'static str = "store";
    type Request = Request;
    type Answer = Answer;

    fn id(&self) -> String {
        self.paths.root.display().to_string()
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn images(&self) -> usize {
        self.trees.images()
    }

    fn pulled(&self) -> Option<usize> {
        Some(self.layers.get().map_or(0, |layers| layers.in_use()))
    }

    fn layers(&self) -> Vec<Arc<Layer>> {
        self.trees.contents()
    }

    fn past(&self) -> Activity {
        self.trees.past()
    }

    fn stays(&self) -> Option<&'static str> {
        Some("users have the store, who are not asked: end its server by SIGTERM")
    }

    fn let_go(&self, how: Detach) {
        share::take_clones_away(&self.paths, how);
    }

    fn ask_disk(&self) {
        self.paths.ask_disk();
    }

    async fn perform(self: Arc<Self>, request: Request, report: Report) -> Result<Answer, String> {
        // Who asks while it starts waits. The sender is there for as long as this is.
        let mut ready = self.ready.subscribe();
        drop(ready.wait_for(|ready| *ready).await);
        if let Request::Layers(holding) = request {
            return self.hold_or_release(holding).await.map(Answer::Held).map_err(|error| error.chain());
        }
        let adds = matches!(request, Request::Add { .. });
        let images = Self::perform(&self, request, &report).await.map_err(|error| error.chain())?;
        if adds {
            let added = images.clone();
            tokio::spawn(async move {
                self.join_added(&added).await;
                self.carried.look();
            });
        }
        Ok(Answer::Images(images))
    }
}

impl Store {
    /// Does what is asked for; gives the images that it is about. `report` hears how far it is.
    pub(super) async fn perform(&self, request: Request, report: &Report) -> Result<Vec<Listing>, Error> {
        match request {
            Request::Add { source, name, full } => Ok(vec![self.add(*source, name, full, report).await?]),
            Request::Remove { names, podman } => self.remove(&names, &podman, report).await,
            Request::List => Ok(self.list().await),
            Request::Share { user, stop } => self.share(&user, stop).await.map(|()| Vec::new()),
            Request::Credentials(given) => self.take_credentials(given).await.map(|()| Vec::new()),
            // Only a server has layers open, and it has done that before.
            Request::Layers(_) => Ok(Vec::new()),
        }
    }
}

/// The store's server, where there is one.
pub(super) fn connect(paths: &Paths, patience: Duration) -> Result<Option<UnixStream>, Unanswered> {
    let Ok(state) = File::open(&paths.state) else { return Ok(None) };
    match ask::connect(state.as_fd(), patience) {
        Err(stopped @ Unanswered::Stopped { .. }) => Err(stopped),
        connected => Ok(connected.ok()),
    }
}

/// Asks a server, and waits for the images that the outcome is about.
pub(super) fn ask(
    server: UnixStream,
    request: Request,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Vec<Listing>, Unanswered> {
    match ask::ask(server, &control::Request::Own(request), SILENCE, on_event)? {
        control::Answer::Own(Answer::Images(images)) => Ok(images),
        _ => Err(Unanswered::OtherVersion),
    }
}
