//! containerd.services.snapshots.v1, method by method.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::error::{Code, Status};
use super::grpc::Methods;
use super::proto;
use super::snapshots::{Info, Layer, Mount, Snapshots};
use super::table::{Kind, Moment};
use crate::threads::{self, Work};

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// Snapshots in a message of a list.
const BLOCK: usize = 100;

pub(super) struct Api(pub(super) Arc<Snapshots>);

impl Methods for Api {
    async fn call(self: Arc<Self>, path: String, message: Bytes) -> Result<Vec<Vec<u8>>, Status> {
        let Some(method) = path.strip_prefix(SERVICE).map(str::to_owned) else {
            return Err(Status::new(Code::Unimplemented, format!("{path} is no method of snapshots")));
        };
        let snapshots = Arc::clone(&self.0);
        // What may wait for a registry keeps no thread from what does not.
        let work = if matches!(&*method, "Prepare" | "View" | "Mounts") { Work::Opening } else { Work::Outside };
        let done = threads::run(work, move || perform(&snapshots, &method, message)).await;
        let done = done.unwrap_or_else(|lost| Err(Status::new(Code::Internal, lost.to_string())));
        if let Err(status) = &done {
            tracing::debug!(path, ?status, "a call was refused");
        }
        done
    }
}

fn perform(snapshots: &Arc<Snapshots>, method: &str, message: Bytes) -> Result<Vec<Vec<u8>>, Status> {
    match method {
        "Prepare" => {
            let proto::PrepareSnapshotRequest { key, parent, labels, .. } = read(message)?;
            let reason = match snapshots.layer(&parent, &labels) {
                Some(Layer::Served(status)) => return Err(status),
                Some(Layer::Unpacked(why)) => {
                    tracing::warn!(key, why, "a layer is not lazy: containerd fetches and unpacks it");
                    Some(why)
                }
                None => None,
            };
            let mounts = snapshots.create(Kind::Active, &key, (&parent, labels), reason)?;
            said(&proto::PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() })
        }
        "View" => {
            let proto::ViewSnapshotRequest { key, parent, labels, .. } = read(message)?;
            let mounts = snapshots.create(Kind::View, &key, (&parent, labels), None)?;
            said(&proto::ViewSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() })
        }
        "Mounts" => {
            let proto::MountsRequest { key, .. } = read(message)?;
            said(&proto::MountsResponse { mounts: snapshots.mounts(&key)?.into_iter().map(mount).collect() })
        }
        "Commit" => {
            let proto::CommitSnapshotRequest { name, key, labels, parent, .. } = read(message)?;
            snapshots.commit(&name, &key, &parent, labels)?;
            nothing()
        }
        "Remove" => {
            let proto::RemoveSnapshotRequest { key, .. } = read(message)?;
            if let Some(lazy) = snapshots.remove(&key)? {
                let snapshots = Arc::clone(snapshots);
                // Nobody waits for it.
                drop(threads::run(Work::Opening, move || snapshots.let_go(&lazy.reference, &[lazy.place])));
            }
            nothing()
        }
        "Stat" => {
            let proto::StatSnapshotRequest { key, .. } = read(message)?;
            said(&proto::StatSnapshotResponse { info: Some(info(snapshots.stat(&key)?)) })
        }
        "Update" => {
            let proto::UpdateSnapshotRequest { info: new, update_mask, .. } = read(message)?;
            let new = new.ok_or_else(|| Status::new(Code::InvalidArgument, "no snapshot is named"))?;
            let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
            let updated = snapshots.update(&new.name, new.labels, &paths)?;
            said(&proto::UpdateSnapshotResponse { info: Some(info(updated)) })
        }
        "List" => {
            let proto::ListSnapshotsRequest { filters, .. } = read(message)?;
            let infos: Vec<_> = snapshots.list(&filters)?.into_iter().map(info).collect();
            let blocks = infos.chunks(BLOCK).map(|block| proto::ListSnapshotsResponse { info: block.to_vec() });
            Ok(blocks.map(|block| block.encode_to_vec()).collect())
        }
        "Usage" => {
            let proto::UsageRequest { key, .. } = read(message)?;
            let (size, inodes) = snapshots.usage(&key)?;
            said(&proto::UsageResponse { size, inodes })
        }
        "Cleanup" => {
            let proto::CleanupRequest { .. } = read(message)?;
            snapshots.clean_up();
            let snapshots = Arc::clone(snapshots);
            drop(threads::run(Work::Opening, move || {
                let unused = snapshots.unused(true);
                unused.iter().for_each(|(reference, places)| snapshots.let_go(reference, places));
            }));
            nothing()
        }
        _ => Err(Status::new(Code::Unimplemented, format!("{method} is no method of snapshots"))),
    }
}

fn read<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::new(Code::InvalidArgument, format!("the call cannot be read: {error}")))
}

fn said(message: &impl Message) -> Result<Vec<Vec<u8>>, Status> {
    Ok(vec![message.encode_to_vec()])
}

fn nothing() -> Result<Vec<Vec<u8>>, Status> {
    said(&proto::Empty {})
}

fn mount(Mount { kind, source, options }: Mount) -> proto::Mount {
    proto::Mount { r#type: kind.to_owned(), source, target: String::new(), options }
}

fn info(info: Info) -> proto::Info {
    let kind = match info.kind {
        Kind::View => proto::Kind::View,
        Kind::Active => proto::Kind::Active,
        Kind::Committed => proto::Kind::Committed,
    };
    let moment = |(seconds, nanos): Moment| Some(proto::Timestamp { seconds, nanos });
    proto::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: moment(info.created),
        updated_at: moment(info.updated),
        labels: info.labels,
    }
}
