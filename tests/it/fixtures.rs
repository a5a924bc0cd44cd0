//! The images of other people's writers, which are in the repository (tests/fixtures/README.md).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where they are.
pub(crate) fn fixtures() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    assert!(dir.is_dir(), "there is no {}: a crate package has no fixtures, a clone has", dir.display());
    dir
}

/// skopeo's docker archive of sink. It holds plain tars, so that the repository has it compressed.
pub(crate) fn docker_archive() -> &'static Path {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let packed = File::open(fixtures().join("sink.docker-archive.tar.gz")).unwrap();
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut archive = tempfile::NamedTempFile::new_in(place).unwrap();
        io::copy(&mut flate2::read::GzDecoder::new(packed), &mut archive).unwrap();
        let path = place.join("sink.docker-archive.tar");
        archive.persist(&path).unwrap();
        path
    })
}
