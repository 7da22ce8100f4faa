//! Pods of a node as Kubernetes tells of them, in real namespaces, from an API server that says what it is told to over HTTP.

mod bed;
mod captured;
mod enrolment;
mod location;
mod marks;
mod plugin;
mod trouble;
