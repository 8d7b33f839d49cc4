//! The threads that work on files and bytes.

/// Stack of a thread that walks directories: some walks call themselves for each level, of which a path can have two
/// thousand. Memory that is not used costs nothing.
pub const STACK_BYTES: usize = 32 << 20;

/// Sets up rayon's pool, once and before anything uses it; the threads of a runtime want [`STACK_BYTES`] as well.
pub fn set_up() {
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).thread_name(|number| format!("worker-{number}"));
    // Somebody has set it up already: then it works as they want.
    let _ = pool.build_global();
}
