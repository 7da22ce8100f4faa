//! Measurements; what they have in common is the mesh that they are made with.

pub mod mesh;
