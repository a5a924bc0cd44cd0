//! The messages of containerd's API, as scripts/make-snapshots-proto makes them of its .proto files. Nobody edits what is in proto/.
#![allow(
    rustdoc::invalid_rust_codeblocks,
    clippy::doc_markdown,
    clippy::tabs_in_doc_comments,
    clippy::must_use_candidate,
    clippy::derive_partial_eq_without_eq,
    unreachable_pub,
    dead_code
)]

mod containerd {
    pub(super) mod services {
        pub(in super::super) mod snapshots {
            pub(in super::super::super) mod v1 {
                include!("proto/containerd.services.snapshots.v1.rs");
            }
        }
    }
    pub(super) mod types {
        include!("proto/containerd.types.rs");
    }
}

mod google {
    pub(super) mod protobuf {
        include!("proto/google.protobuf.rs");
    }
}

pub(super) use self::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
    ViewSnapshotRequest, ViewSnapshotResponse,
};
pub(super) use self::containerd::types::Mount;
pub(super) use self::google::protobuf::{Empty, Timestamp};
