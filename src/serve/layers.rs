//! What a mount's server tells of its layers: why each is as it is, what it has cost, and what was fetched of it since.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fetch;
use crate::image::heat::Heat;
use crate::image::inspect::{self, LayerInspection, Since};
use crate::image::layer::OpenLayer;
use crate::registry::SociSource;

/// What a mount's server is asked besides what all are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Why its layers are as they are, and what they have cost.
    Layers,
    /// What became of their bytes.
    Heat,
}

/// What it answers to that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Told {
    Layers(Vec<LayerInspection>),
    Heat(Box<Heat>),
}

/// The layers of a mount, and what was asked for each before it was ready.
pub(crate) struct Layers(Vec<(LayerInspection, Arc<fetch::Layer>, Since)>);

impl Layers {
    /// As they are before the mount is ready. `soci`: who says that the image's SOCI index belongs to it.
    pub(crate) fn new(layers: &[OpenLayer], soci: Option<SociSource>) -> Self {
        let told = inspect::opened(layers, soci).into_iter().zip(layers);
        let before = |open: &OpenLayer| Since { requests: open.cost.requests, fetched: open.cost.bytes };
        Self(told.map(|(told, open)| (told, Arc::clone(&open.contents), before(open))).collect())
    }

    /// With what was asked for each since. Of one that the image has several times, at its lowest place.
    pub(crate) fn told(&self) -> Vec<LayerInspection> {
        let mut seen = HashSet::new();
        let told = |(layer, contents, before): &(LayerInspection, Arc<fetch::Layer>, Since)| {
            let now = if seen.insert(Arc::as_ptr(contents)) { fetched(contents) } else { *before };
            let since = Since {
                requests: now.requests.saturating_sub(before.requests),
                fetched: now.fetched.saturating_sub(before.fetched),
            };
            LayerInspection { since: Some(since), ..layer.clone() }
        };
        self.0.iter().map(told).collect()
    }
}

fn fetched(layer: &fetch::Layer) -> Since {
    let stats = layer.stats();
    Since { requests: stats.requests, fetched: stats.fetched }
}
