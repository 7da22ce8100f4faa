//! Where objects come from. A source fills `object` and knows nothing of the index.

pub mod file;
pub mod kube;
pub mod layers;
