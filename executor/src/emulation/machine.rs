//! The machines that Linux images are made for: what they are called, how their programs begin, and the smallest program
//! of each.

use std::fmt::Write as _;

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As in platforms: `arm64`.
    pub architecture: &'static str,
    /// As QEMU calls it: `aarch64`.
    pub qemu: &'static str,
    /// `EI_CLASS` of its programs: 1 for 32 bit, 2 for 64 bit.
    class: u8,
    /// `EI_DATA`: 1 for little endian, 2 for big endian.
    data: u8,
    /// `e_machine`.
    number: u16,
    /// `e_flags` of [`Machine::smallest_program`].
    flags: u32,
    /// Machine code that ends the process with code 0.
    exit: &'static [u8],
}

/// Bytes of a program that tell its machine: the ELF identification, type and machine.
pub(super) const HEADER_BYTES: usize = 20;

const LITTLE: u8 = 1;
const BIG: u8 = 2;

/// All that we know.
const MACHINES: &[Machine] = &[
    Machine {
        architecture: "amd64",
        qemu: "x86_64",
        class: 2,
        data: LITTLE,
        number: 62,
        flags: 0,
        // mov $60,%eax; xor %edi,%edi; syscall
        exit: &[0xb8, 0x3c, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
    },
    Machine {
        architecture: "386",
        qemu: "i386",
        class: 1,
        data: LITTLE,
        number: 3,
        flags: 0,
        // mov $1,%eax; xor %ebx,%ebx; int $0x80
        exit: &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80],
    },
    Machine {
        architecture: "arm64",
        qemu: "aarch64",
        class: 2,
        data: LITTLE,
        number: 183,
        flags: 0,
        // mov x0,#0; mov x8,#93; svc #0
        exit: &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4],
    },
    Machine {
        architecture: "arm",
        qemu: "arm",
        class: 1,
        data: LITTLE,
        number: 40,
        // EABI version 5.
        flags: 0x0500_0000,
        // mov r0,#0; mov r7,#1; svc #0
        exit: &[0, 0, 0xa0, 0xe3, 1, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef],
    },
    Machine {
        architecture: "riscv64",
        qemu: "riscv64",
        class: 2,
        data: LITTLE,
        number: 243,
        flags: 0,
        // li a0,0; li a7,93; ecall
        exit: &[0x13, 0x05, 0, 0, 0x93, 0x08, 0xd0, 0x05, 0x73, 0, 0, 0],
    },
    Machine {
        architecture: "ppc64le",
        qemu: "ppc64le",
        class: 2,
        data: LITTLE,
        number: 21,
        // ABI version 2.
        flags: 2,
        // li r0,1; li r3,0; sc
        exit: &[1, 0, 0, 0x38, 0, 0, 0x60, 0x38, 2, 0, 0, 0x44],
    },
    Machine {
        architecture: "s390x",
        qemu: "s390x",
        class: 2,
        data: BIG,
        number: 22,
        flags: 0,
        // lghi %r2,0; svc 1
        exit: &[0xa7, 0x29, 0, 0, 0x0a, 1],
    },
    Machine {
        architecture: "mips64le",
        qemu: "mips64el",
        class: 2,
        data: LITTLE,
        number: 8,
        // MIPS64, release 2.
        flags: 0x8000_0000,
        // daddiu a0,zero,0; daddiu v0,zero,5058; syscall
        exit: &[0, 0, 0x04, 0x64, 0xc2, 0x13, 0x02, 0x64, 0x0c, 0, 0, 0],
    },
    Machine {
        architecture: "loong64",
        qemu: "loongarch64",
        class: 2,
        data: LITTLE,
        number: 258,
        // Object ABI 1, double floats.
        flags: 0x43,
        // addi.w a0,zero,0; addi.w a7,zero,93; syscall 0
        exit: &[4, 0, 0x80, 0x02, 0x0b, 0x74, 0x81, 0x02, 0, 0, 0x2b, 0],
    },
];

impl Machine {
    /// That of a platform's architecture; `None` for one that we do not know.
    pub fn of_architecture(architecture: &str) -> Option<&'static Self> {
        MACHINES.iter().find(|machine| machine.architecture == architecture)
    }

    /// That of this program.
    pub fn of_this_process() -> Option<&'static Self> {
        Self::of_architecture(&oci::Platform::host().architecture)
    }

    /// That of a program which begins with `header`; `None` when that is no program, or one for none of ours.
    pub(super) fn of_header(header: &[u8]) -> Option<&'static Self> {
        let header = header.get(..HEADER_BYTES)?;
        MACHINES.iter().find(|machine| {
            let type_and_machine = &header[18..20];
            header.starts_with(b"\x7fELF")
                && (header[4], header[5]) == (machine.class, machine.data)
                && type_and_machine == machine.half(machine.number)
        })
    }

    /// A program that ends with code 0, for seeing whether programs of this machine run here.
    pub(super) fn smallest_program(&self) -> Vec<u8> {
        const BASE: u64 = 0x1_0000;
        const PAGE: u64 = 0x1_0000;
        let (header_bytes, segment_bytes) = if self.class == 2 { (64_u16, 56_u16) } else { (52, 32) };
        let start = u64::from(header_bytes + segment_bytes);
        let size = start + self.exit.len() as u64;
        let mut program = self.header();
        program.extend(self.word(1));
        program.extend(self.address(BASE + start));
        program.extend(self.address(header_bytes.into()));
        program.extend(self.address(0));
        program.extend(self.word(self.flags));
        for half in [header_bytes, segment_bytes, 1, 0, 0, 0] {
            program.extend(self.half(half));
        }
        // One segment, the whole file: readable and executable.
        let (load, flags) = (self.word(1), self.word(5));
        program.extend(load);
        if self.class == 2 {
            program.extend(flags);
        }
        for address in [0, BASE, BASE, size, size] {
            program.extend(self.address(address));
        }
        if self.class == 1 {
            program.extend(flags);
        }
        program.extend(self.address(PAGE));
        program.extend(self.exit);
        program
    }

    /// What binfmt_misc is told: programs of this machine are started by `interpreter`. With the flags that keep names,
    /// give set-user-ID programs their due, and open the interpreter now (`F`).
    pub(super) fn registration(&self, interpreter: &str) -> String {
        let mask: [u8; HEADER_BYTES] = match self.data {
            BIG => [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                0xfe, 0xff, 0xff,
            ],
            _ => [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
                0xff, 0xff, 0xff,
            ],
        };
        format!(":qemu-{}:M::{}:{}:{interpreter}:POCF", self.qemu, escaped(&self.header()), escaped(&mask))
    }

    /// The first [`HEADER_BYTES`] of an executable program.
    fn header(&self) -> Vec<u8> {
        let mut header = b"\x7fELF".to_vec();
        header.extend([self.class, self.data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        header.extend(self.half(2));
        header.extend(self.half(self.number));
        header
    }

    fn half(&self, value: u16) -> [u8; 2] {
        if self.data == BIG { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn word(&self, value: u32) -> [u8; 4] {
        if self.data == BIG { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    /// As wide as the machine's addresses.
    fn address(&self, value: u64) -> Vec<u8> {
        match (self.class, self.data) {
            // Our addresses are small.
            (1, _) => self.word(value as u32).to_vec(),
            (_, BIG) => value.to_be_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        }
    }
}

/// The kernel reads `\xHH`; colons and NULs could not be written otherwise.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "\\x{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_knows_its_own_programs() {
        for machine in MACHINES {
            let program = machine.smallest_program();
            assert_eq!(Machine::of_header(&program), Some(machine));
            assert!(machine.registration("/q").len() < 1920, "the kernel takes no more");
        }
        assert_eq!(Machine::of_header(b"#!/bin/sh\n, which is a script"), None);
        assert_eq!(Machine::of_header(b"\x7fELF"), None);
    }

    #[test]
    fn a_registration_is_what_the_kernel_reads() {
        let machine = Machine::of_architecture("arm64").unwrap();
        let expected = r":qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/q:POCF";
        assert_eq!(machine.registration("/q"), expected);
    }
}
