//! What is said about us on every stream: the token, the cluster and the operator's own headers.

use std::fmt;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

use super::{Config, Error};

const TOKEN_LIMIT: u64 = 64 * 1024;

/// Where the bearer token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Read again for every stream: Kubernetes rotates it.
    File(PathBuf),
    Literal(String),
}

/// The headers that no file holds.
pub(super) fn fixed(config: &Config) -> Result<MetadataMap, Error> {
    let invalid = |name: &str, reason| Error::Header { name: name.to_owned(), reason };
    let mut metadata = MetadataMap::new();
    for (name, value) in &config.headers {
        let key = MetadataKey::<Ascii>::from_bytes(name.to_ascii_lowercase().as_bytes())
            .map_err(|_| invalid(name, "the name holds a character that header names cannot hold"))?;
        let mut value = ascii(&value.0).ok_or_else(|| invalid(name, "the value is not printable ASCII"))?;
        value.set_sensitive(true);
        metadata.insert(key, value);
    }
    let cluster =
        ascii(&config.cluster_id).ok_or_else(|| invalid("clusterid", "CLUSTER_ID is not printable ASCII"))?;
    metadata.insert("clusterid", cluster);
    Ok(metadata)
}

/// The value of `authorization`.
pub(super) async fn bearer(source: &TokenSource) -> Result<MetadataValue<Ascii>, Error> {
    let (token, place) = match source {
        TokenSource::Literal(token) => (token.clone(), "given as text".to_owned()),
        TokenSource::File(path) => (read(path).await?, in_file(path)),
    };
    let unusable = |reason: &str| Error::Token { place: place.clone(), reason: reason.to_owned() };
    let token = match token.trim() {
        "" => return Err(unusable("it is empty")),
        token => token,
    };
    let mut value = ascii(&format!("Bearer {token}"))
        .ok_or_else(|| unusable("it holds a character that is not printable ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(path: &Path) -> Result<String, Error> {
    let unusable = |reason: String| Error::Token { place: in_file(path), reason };
    let size = tokio::fs::metadata(path).await.map_err(|error| unusable(error.to_string()))?.len();
    if size > TOKEN_LIMIT {
        return Err(unusable(format!("it has {size} bytes, which no token has")));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| unusable(error.to_string()))
}

fn in_file(path: &Path) -> String {
    format!("in {}", path.display())
}

fn ascii(text: &str) -> Option<MetadataValue<Ascii>> {
    MetadataValue::try_from(text).ok()
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(redacted)"),
        }
    }
}
