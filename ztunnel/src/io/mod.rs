//! Threads and buffers of the data path: one single-threaded runtime per worker core.
//!
//! Owns the worker threads and the read buffer that all connections of a worker share. Knows nothing of what the
//! workers do: each has a state `S` that is built on its own thread and never leaves it, and jobs that visit it.

pub mod buffer;
pub mod priority;
pub mod privileges;
pub mod worker;

pub use worker::Workers;
