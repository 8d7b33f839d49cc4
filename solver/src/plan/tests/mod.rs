//! Whole plans: tables of Dockerfiles, folders with rendered graphs, and recorded builds of the reference builder.

mod fake;
mod goldens;
mod outline;
mod recorded;
mod rules;
mod tables;
