//! The seccomp filter of every program here: what no ordinary program needs is refused with EPERM.
//!
//! The list is that of docker's default profile for a process without capabilities, less what a
//! kernel of one's own makes harmless. Other architectures' calls (x32, i386) are refused as well.

const DENIED: &[u32] = &[
    101, // ptrace
    103, // syslog
    139, // sysfs
    153, // vhangup
    155, // pivot_root
    163, // acct
    164, // settimeofday
    165, // mount
    166, // umount2
    167, // swapon
    168, // swapoff
    169, // reboot
    172, // iopl
    173, // ioperm
    175, // init_module
    176, // delete_module
    179, // quotactl
    212, // lookup_dcookie
    227, // clock_settime
    246, // kexec_load
    248, // add_key
    249, // request_key
    250, // keyctl
    256, // migrate_pages
    272, // unshare
    279, // move_pages
    298, // perf_event_open
    300, // fanotify_init
    304, // open_by_handle_at
    305, // clock_adjtime
    308, // setns
    310, // process_vm_readv
    311, // process_vm_writev
    313, // finit_module
    320, // kexec_file_load
    321, // bpf
    323, // userfaultfd
    425, // io_uring_setup
    426, // io_uring_enter
    427, // io_uring_register
    428, // open_tree
    429, // move_mount
    430, // fsopen
    431, // fsconfig
    432, // fsmount
    433, // fspick
    442, // mount_setattr
];

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const PERM: u32 = 0x0005_0001;
const NOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;
const X86_64: u32 = 0xc000_003e;
const X32: u32 = 0x4000_0000;
const CLONE: u32 = 56;
const CLONE3: u32 = 435;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: u32 = 0x7e02_0000;

fn step(code: u16, yes: u8, no: u8, k: u32) -> [u8; 8] {
    let (code, k) = (code.to_le_bytes(), k.to_le_bytes());
    [code[0], code[1], yes, no, k[0], k[1], k[2], k[3]]
}

/// The program, as struct sock_filter; see seccomp(2).
pub fn program() -> Vec<[u8; 8]> {
    let mut steps = vec![
        step(LOAD, 0, 0, 4),
        step(EQUAL, 1, 0, X86_64),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, PERM),
        // The flags of clone3 are in memory, where no filter sees them; libraries then use clone.
        step(EQUAL, 0, 1, CLONE3),
        step(RETURN, 0, 0, NOSYS),
        step(EQUAL, 0, 4, CLONE),
        step(LOAD, 0, 0, 16),
        step(ANY_BIT, 0, 1, NAMESPACES),
        step(RETURN, 0, 0, PERM),
        step(RETURN, 0, 0, ALLOW),
    ];
    for number in DENIED {
        steps.push(step(EQUAL, 0, 1, *number));
        steps.push(step(RETURN, 0, 0, PERM));
    }
    steps.push(step(RETURN, 0, 0, ALLOW));
    steps
}
