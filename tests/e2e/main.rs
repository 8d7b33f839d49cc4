//! End-to-end tests of the program, one module a subject. They run the real binary as a user would.

mod archives;
mod arrows;
mod build;
mod check;
mod compare;
mod doctor;
mod emulation;
mod errors;
mod escape;
mod harness;
mod hostile;
mod images;
mod imagetools;
mod interrupt;
mod isolation;
mod isolation_runtime;
mod network;
mod platforms;
mod pull;
mod push;
mod real;
mod referees;
mod remote;
mod ssh;
