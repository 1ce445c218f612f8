//! What `client.toml` is read as, for the fuzz targets and the test that replays their corpora. No interface.

use crate::profile::ClientToml;

/// The addresses in the text of a `client.toml`, or what is wrong with it.
pub fn addresses(text: &str) -> Result<Vec<String>, String> {
    ClientToml::parse(text).map(|config| config.addresses)
}
