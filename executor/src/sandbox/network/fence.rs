//! Keeps packets for the host's loopback interface in a private network.
//!
//! Addresses like 127.0.0.1 usually do not leave a namespace. But a program may bind its socket to the interface that leads
//! out, or write whole packets itself, and a helper from before 2024 then connects to the *host's* loopback interface. So
//! everything that leaves through the interface is looked at: by a classic packet filter on its way out (tc-bpf(8)),
//! which root of a step cannot take away, because it may not administrate the network.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send, socket_with};
use rustix::thread::LinkNameSpaceType;

/// `RTM_NEWQDISC`, rtnetlink(7).
const NEW_QDISC: u16 = 36;
/// `RTM_NEWTFILTER`.
const NEW_FILTER: u16 = 44;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE`.
const CREATE: u16 = 0x1 | 0x4 | 0x200 | 0x400;
/// `NLMSG_ERROR`, which is also the answer to what has succeeded.
const ANSWER: u16 = 2;
/// `TC_H_CLSACT`, the place for filters of both directions.
const CLSACT: u32 = 0xffff_fff1;
/// The filters on the way out.
const EGRESS: u32 = 0xffff_fff3;
/// First of all filters, of every protocol: the priority, and `ETH_P_ALL` in the order of the network.
const FIRST_OF_ALL: u32 = 1 << 16 | 0x0003_u16.to_be() as u32;
/// `TCA_KIND`.
const KIND: u16 = 1;
/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2;
/// `TCA_BPF_OPS_LEN`.
const OPS_LEN: u16 = 4;
/// `TCA_BPF_OPS`.
const OPS: u16 = 5;
/// `TCA_BPF_FLAGS`.
const FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the filter returns is what is done.
const DIRECT: u32 = 1;

/// Puts the filter on an interface of `namespace`. From a thread of its own, which ends.
///
/// # Errors
/// Those of the kernel, which may lack the filter (`CONFIG_NET_CLS_BPF`).
pub(super) fn raise(namespace: &OwnedFd, interface: &str) -> Result<(), Errno> {
    let work = || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&socket, interface)?;
        request(&socket, Message::new(NEW_QDISC, index, CLSACT & 0xffff_0000, CLSACT, 0).attribute(KIND, b"clsact\0"))?;
        request(&socket, filter(index))
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or(Err(Errno::IO))
}

fn filter(index: u32) -> Message {
    let code: Vec<u8> = PROGRAM.iter().flat_map(Instruction::bytes).collect();
    let options = Attributes::default()
        .with(OPS_LEN, &(PROGRAM.len() as u16).to_ne_bytes())
        .with(OPS, &code)
        .with(FLAGS, &DIRECT.to_ne_bytes());
    Message::new(NEW_FILTER, index, 0, EGRESS, FIRST_OF_ALL).attribute(KIND, b"bpf\0").attribute(OPTIONS, &options.0)
}

/// Sends a message and waits for the answer.
fn request(socket: &OwnedFd, message: Message) -> Result<(), Errno> {
    send(socket, &message.finish(), SendFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let (n_bytes, _) = recv(socket, &mut answer, RecvFlags::empty())?;
    let field = |at: usize| answer[..n_bytes].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let (Some(kind), Some(code)) = (field(4), field(16)) else { return Err(Errno::BADMSG) };
    match (u32::from_ne_bytes(kind) as u16, i32::from_ne_bytes(code)) {
        (ANSWER, 0) => Ok(()),
        (ANSWER, code) => Err(Errno::from_raw_os_error(code.wrapping_neg())),
        _ => Err(Errno::BADMSG),
    }
}

/// A message of rtnetlink about traffic control.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, interface: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(CREATE.to_ne_bytes());
        // Number of the message, its sender, and the family of addresses: none.
        bytes.extend([0; 12]);
        for field in [interface, handle, parent, info] {
            bytes.extend(field.to_ne_bytes());
        }
        Self(bytes)
    }

    fn attribute(self, kind: u16, content: &[u8]) -> Self {
        Self(Attributes(self.0).with(kind, content).0)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Attributes of netlink: length, kind, content, filled up to a multiple of four.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn with(mut self, kind: u16, content: &[u8]) -> Self {
        self.0.extend((content.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// An instruction of a classic packet filter: `struct sock_filter`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    /// Instructions to skip if equal, and if not.
    jumps: (u8, u8),
    operand: u32,
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        let ([c0, c1], [o0, o1, o2, o3]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [c0, c1, self.jumps.0, self.jumps.1, o0, o1, o2, o3]
    }
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `TC_ACT_OK`.
const PASS: u32 = 0;
/// `TC_ACT_SHOT`.
const DROP: u32 = 2;

const fn load(code: u16, offset: u32) -> Instruction {
    Instruction { code, jumps: (0, 0), operand: offset }
}

const fn if_equal(operand: u32, then: u8, otherwise: u8) -> Instruction {
    Instruction { code: IF_EQUAL, jumps: (then, otherwise), operand }
}

const fn give(verdict: u32) -> Instruction {
    Instruction { code: RETURN, jumps: (0, 0), operand: verdict }
}

/// Drops frames of Ethernet that go to 127.0.0.0/8, to `::1`, to the addresses of "this host" (0.0.0.0/8, `::`), which
/// `connect` takes for loopback, and to addresses of IPv4 as IPv6 writes them.
const PROGRAM: [Instruction; 18] = [
    load(LOAD_HALF, 12),
    if_equal(0x0800, 0, 3),
    load(LOAD_BYTE, 30),
    if_equal(127, 13, 0),
    if_equal(0, 12, 11),
    if_equal(0x86dd, 0, 10),
    load(LOAD_WORD, 38),
    if_equal(0, 0, 8),
    load(LOAD_WORD, 42),
    if_equal(0, 0, 6),
    load(LOAD_WORD, 46),
    if_equal(0xffff, 5, 0),
    if_equal(0, 0, 3),
    load(LOAD_WORD, 50),
    if_equal(1, 2, 0),
    if_equal(0, 1, 0),
    give(PASS),
    give(DROP),
];

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// What the kernel does with a frame.
    fn verdict(frame: &[u8]) -> u32 {
        let (mut at, mut value) = (0, 0);
        let load = |offset: u32, n_bytes: usize| {
            frame[offset as usize..][..n_bytes].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
        };
        loop {
            let Instruction { code, jumps, operand } = PROGRAM[at];
            at += 1;
            match code {
                LOAD_WORD => value = load(operand, 4),
                LOAD_HALF => value = load(operand, 2),
                LOAD_BYTE => value = load(operand, 1),
                IF_EQUAL => at += usize::from(if value == operand { jumps.0 } else { jumps.1 }),
                RETURN => return operand,
                other => panic!("{other:#x}"),
            }
        }
    }

    /// An Ethernet frame to an address.
    fn frame(to: &str) -> Vec<u8> {
        let mut frame = vec![0; 64];
        match to.parse().unwrap() {
            IpAddr::V4(address) => {
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[30..34].copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
                frame[38..54].copy_from_slice(&address.octets());
            }
        }
        frame
    }

    #[test]
    fn loopback_addresses_do_not_leave_and_others_do() {
        for address in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert_eq!(verdict(&frame(address)), DROP, "{address}");
        }
        for address in
            ["10.0.0.1", "192.0.0.3", "1.127.0.1", "2001:db8::1", "fd00::", "::1:0:0:1", "64:ff9b::7f00:1", "::2"]
        {
            assert_eq!(verdict(&frame(address)), PASS, "{address}");
        }
        // ARP.
        let mut arp = vec![0; 64];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(verdict(&arp), PASS);
    }

    #[test]
    fn messages_are_as_the_kernel_reads_them() {
        let bytes = filter(7).finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        // 16 bytes of header, 20 about traffic control, then the kind.
        assert_eq!(
            &bytes[36..48],
            [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"bpf\0", &168_u16.to_ne_bytes(), &2_u16.to_ne_bytes()]
                .concat()
        );
    }
}
