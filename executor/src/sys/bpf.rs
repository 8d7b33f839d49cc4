//! A program in the kernel that decides which devices the processes of a control group may open.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

/// A device that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedDevice {
    /// Which sort.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// What may be done with it; making a node is always allowed.
    pub access: DeviceAccess,
}

/// The sorts of devices: the kernel's `BPF_DEVCG_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

/// What may be done with a device: the kernel's `BPF_DEVCG_ACC_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess(u8);

impl DeviceAccess {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Nodes for it may be made.
    pub const MAKE: Self = Self(1);
    /// It may be opened for reading.
    pub const READ: Self = Self(2);
    /// It may be opened for writing.
    pub const WRITE: Self = Self(4);
    /// All of it.
    pub const ALL: Self = Self(7);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `BPF_PROG_LOAD`'s part of `union bpf_attr`, as far as it is used; the kernel takes what is beyond for zero.
#[repr(C)]
struct LoadRequest {
    program_type: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// `BPF_PROG_ATTACH`'s part of `union bpf_attr`.
#[repr(C)]
struct AttachRequest {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

const LOAD: libc::c_long = 5;
const ATTACH: libc::c_long = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of groups above and below stay in force.
const ALLOW_MULTIPLE: u32 = 2;

/// `bpf(2)`, `BPF_PROG_LOAD`: a filter that lets nodes be made freely but used only as far as they are in `allowed`.
/// Linux ≥ 4.15.
///
/// # Errors
/// `PERM` without `CAP_SYS_ADMIN` (or `CAP_BPF`), `INVAL` on a kernel without such filters.
pub fn load_device_filter(allowed: &[AllowedDevice]) -> Result<OwnedFd, Errno> {
    let instructions = device_filter(allowed);
    let license = c"Apache-2.0";
    let request = LoadRequest {
        program_type: TYPE_CGROUP_DEVICE,
        n_instructions: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the request has the kernel's layout, and its own size is given; the program and the licence that it points
    // to live across the call, and the kernel copies both.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const request, size_of::<LoadRequest>()) };
    match i32::try_from(fd) {
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

/// `bpf(2)`, `BPF_PROG_ATTACH`: puts the control group `group` (a directory of the unified hierarchy) and all below it
/// under `filter`. It stays until the group is removed. Linux ≥ 4.15.
///
/// # Errors
/// `BADF` when `group` is no control group; `PERM`.
pub fn attach_device_filter(group: BorrowedFd<'_>, filter: BorrowedFd<'_>) -> Result<(), Errno> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF);
    let request = AttachRequest {
        target: number(group)?,
        program: number(filter)?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTIPLE,
        replaced: 0,
    };
    // SAFETY: the request has the kernel's layout, lives across the call, and its own size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, ATTACH, &raw const request, size_of::<AttachRequest>()) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The program. Its input is `struct bpf_cgroup_dev_ctx`: access and type in one word, major, minor.
fn device_filter(allowed: &[AllowedDevice]) -> Vec<Instruction> {
    const MAKE_NODE: i32 = 1;
    let (result, context, access, kind, major, minor, beyond) = (0, 1, 2, 3, 4, 5, 6);
    let mut program = vec![
        load_word(access, context, 0),
        copy(kind, access),
        and(kind, 0xffff),
        shift_right(access, 16),
        load_word(major, context, 4),
        load_word(minor, context, 8),
        // Making a node, and no more, is harmless.
        jump_unless_equal(access, MAKE_NODE, 2),
        set(result, 1),
        exit(),
    ];
    for device in allowed {
        // What is asked for and not allowed; nodes may be made of everything.
        let refused = !i32::from(device.access.with(DeviceAccess::MAKE).0);
        let minor_test = device.minor.map(|number| jump_unless_equal(minor, number.cast_signed(), 5));
        let to_minor = if minor_test.is_some() { 1 } else { 0 };
        program.push(jump_unless_equal(kind, device.kind as i32, 6 + to_minor));
        program.push(jump_unless_equal(major, device.major.cast_signed(), 5 + to_minor));
        program.extend(minor_test);
        program.extend([copy(beyond, access), and(beyond, refused), jump_unless_equal(beyond, 0, 2)]);
        program.extend([set(result, 1), exit()]);
    }
    program.extend([set(result, 0), exit()]);
    program
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

const fn load_word(destination: u8, source: u8, offset: i16) -> Instruction {
    instruction(0x61, destination, source, offset, 0)
}

const fn copy(destination: u8, source: u8) -> Instruction {
    instruction(0xbf, destination, source, 0, 0)
}

const fn and(destination: u8, mask: i32) -> Instruction {
    instruction(0x57, destination, 0, 0, mask)
}

const fn shift_right(destination: u8, bits: i32) -> Instruction {
    instruction(0x77, destination, 0, 0, bits)
}

const fn jump_unless_equal(register: u8, value: i32, distance: i16) -> Instruction {
    instruction(0x55, register, 0, distance, value)
}

const fn set(register: u8, value: i32) -> Instruction {
    instruction(0xb7, register, 0, 0, value)
}

const fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program for one access, as the kernel would.
    fn decide(program: &[Instruction], access: u32, kind: u32, major: u32, minor: u32) -> i64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let step = program[at];
            at += 1;
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let jump = |yes: bool| if yes { usize::try_from(step.offset).unwrap() } else { 0 };
            match step.code {
                0x61 => registers[to] = i64::from(context[usize::try_from(step.offset).unwrap() / 4]),
                0xbf => registers[to] = registers[from],
                0x57 => registers[to] &= i64::from(step.immediate),
                0x77 => registers[to] >>= step.immediate,
                0x55 => at += jump(registers[to] != i64::from(step.immediate)),
                0xb7 => registers[to] = i64::from(step.immediate),
                0x95 => return registers[0],
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn only_allowed_devices_open_and_all_can_be_made() {
        let device = |kind, major, minor, access| AllowedDevice { kind, major, minor, access };
        let (all, reading) = (DeviceAccess::ALL, DeviceAccess::READ);
        let allowed = [
            device(DeviceKind::Character, 1, Some(3), all),
            device(DeviceKind::Character, 136, None, all),
            device(DeviceKind::Block, 7, Some(0), reading),
            device(DeviceKind::Character, 10, None, DeviceAccess::NONE),
        ];
        let program = device_filter(&allowed);
        let (make, read, write, block, character) = (1, 2, 4, 1, 2);
        let cases = [
            (make, block, 8, 0, 1),
            (make, character, 10, 200, 1),
            (read | write, character, 1, 3, 1),
            (read | make, character, 1, 3, 1),
            (read, character, 1, 1, 0),
            (read, block, 1, 3, 0),
            (read | make, block, 8, 0, 0),
            (write, character, 136, 77, 1),
            (read, character, 5, 1, 0),
            (read, block, 7, 0, 1),
            (read | make, block, 7, 0, 1),
            (read | write, block, 7, 0, 0),
            (read, block, 7, 1, 0),
            (read, character, 7, 0, 0),
            (read, character, 10, 229, 0),
        ];
        for (access, kind, major, minor, want) in cases {
            assert_eq!(decide(&program, access, kind, major, minor), want, "{access} {kind} {major}:{minor}");
        }
    }
}
