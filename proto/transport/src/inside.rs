//! What the guard of HTTP/3 streams makes of arbitrary input, for the fuzz targets and the test that replays their
//! corpora. No interface.

use crate::preface::Preface;

/// Whether a stream that arrives in these pieces stays within `limit` bytes outside of DATA.
#[must_use]
pub fn within<'a>(limit: usize, pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut preface = Preface::new(limit);
    pieces
        .into_iter()
        .all(|piece| preface.observe(piece).is_ok())
}
