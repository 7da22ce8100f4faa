//! Threads and buffers of the data path: one single-threaded runtime per worker core.
//!
//! Owns the worker threads, the buffers that all connections of a worker share, and the turns they take. Knows nothing of
//! what the workers do: each has a state `S` that is built on its own thread and never leaves it, and jobs that visit it.

pub mod backend;
pub mod budget;
pub mod buffer;
pub mod load;
mod memory;
pub mod pipe;
pub mod priority;
pub mod privileges;
pub mod share;
mod slice;
pub mod spare;
pub mod turn;
pub mod uring;
pub mod worker;

pub use worker::Workers;
