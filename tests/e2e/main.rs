//! End-to-end tests of the program, one module a subject. They run the real binary as a user would.

mod arrows;
mod build;
mod check;
mod devices;
mod doctor;
mod emulation;
mod errors;
mod escape;
mod harness;
mod hostile;
mod interrupt;
mod isolation;
mod isolation_runtime;
mod load;
mod network;
mod platforms;
mod pull;
mod push;
mod real;
mod referees;
mod registries;
mod remote;
mod ssh;
mod tokens;
mod weather;
