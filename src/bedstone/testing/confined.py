"""A program that tries to reach beyond itself, and says what came of each attempt.

It runs in a process that is confined, with the standard library only, and prints JSON: for each
attempt `ok`, or the name of the error. `ATTEMPTS` must all fail; `WORK` must all succeed.
"""

from __future__ import annotations

from typing import Final

ATTEMPTS: Final = {
    "mount a file system": "check(libc.mount(b'none', b'/mnt', b'tmpfs', 0, None))",
    "unmount one": "check(libc.umount2(b'/proc', 2))",
    "change its root": "os.chroot('/tmp')",
    "have users of its own": "check(libc.unshare(0x10000000))",
    "have a network of its own": "check(libc.unshare(0x40000000))",
    "fork into namespaces": "call('clone', 0x10000000 | 17, 0, 0, 0, 0)",
    "enter a namespace": "check(libc.setns(os.open('/proc/self/ns/net', 0), 0))",
    "trace a sibling": "check(libc.ptrace(16, sibling, 0, 0))",
    "read a sibling's memory": "open(f'/proc/{sibling}/mem', 'rb').read(1)",
    "read a sibling's environment": "assert not open(f'/proc/{sibling}/environ').read()",
    "call into a sibling's memory": "call('process_vm_readv', sibling, 0, 0, 0, 0, 0)",
    "signal a sibling": "os.kill(sibling, 0)",
    "take a key": "call('keyctl', 0, -3, 0)",
    "add a key": "call('add_key', b'user', b'x', b'y', 1, -3)",
    "send raw packets": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "see all packets": "socket.socket(17, socket.SOCK_RAW, 0)",
    "speak to the hypervisor": "socket.socket(40, socket.SOCK_STREAM)",
    "use the kernel's ciphers": "socket.socket(38, socket.SOCK_SEQPACKET)",
    "load a program into the kernel": "call('bpf', 0, 0, 0)",
    "watch the processor": "call('perf_event_open', 0, 0, -1, -1, 0)",
    "handle page faults": "call('userfaultfd', 0)",
    "queue requests": "call('io_uring_setup', 1, bytes(120))",
    "load a module": "call('init_module', b'x', 1, b'')",
    "start another kernel": "call('kexec_load', 0, 0, 0, 0)",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "name the machine": "check(libc.sethostname(b'x', 1))",
    "make a disk's node": "os.mknod('disk', 0o060600, 0x800)",
    "turn a kernel's setting": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')",
    "ask for a reboot": "open('/proc/sysrq-trigger', 'w').write('h')",
    "write elsewhere": "open(outside, 'a')",
    "cut a file elsewhere": "os.truncate(outside, 0)",
    "remove a file elsewhere": "os.remove(outside)",
    "make a folder elsewhere": "os.mkdir(outside + '.d')",
    "write through a link": "os.symlink(outside, 'link') or open('link', 'a')",
    "move a file from elsewhere": "os.rename(outside, 'taken')",
    "speak to a socket of the machine": "socket.socket(socket.AF_UNIX).connect(abstract)",
}
"""What nobody may do who is confined."""

OUTPUT: Final = "its output, by name"
WORK: Final = {
    "a database in its folder": "sqlite3.connect('data.db').execute('CREATE TABLE t (x)')",
    "a file moved between folders": (
        "os.makedirs('a/b', exist_ok=True); open('a/f', 'w').close(); os.rename('a/f', 'a/b/f')"
    ),
    "a temporary file": "tempfile.TemporaryFile().write(b'x')",
    "a file in /tmp": "os.remove(tempfile.mkstemp(dir='/tmp')[1])",
    OUTPUT: "print('', file=open('/dev/stderr', 'a'))",
    "a program": "subprocess.run(['true'], check=True)",
    "a shell with a pipe": "assert os.popen('echo a | cat').read() == 'a\\n'",
    "a program, waited for by a loop": (
        "async def go():\n"
        "    process = await asyncio.create_subprocess_exec('true')\n"
        "    assert await process.wait() == 0\n"
        "asyncio.run(go())"
    ),
    "threads": "threading.Thread(target=int).start()",
    "processes that share a queue": (
        "q = multiprocessing.get_context('fork').Queue(); q.put(1); assert q.get(timeout=9) == 1"
    ),
    "a child that is signalled": (
        "child = subprocess.Popen(['sleep', '60']); child.kill(); assert child.wait() == -9"
    ),
    "a child that is seen": (
        "child = subprocess.Popen(['sleep', '60']); open(f'/proc/{child.pid}/environ').read();"
        " child.kill(); child.wait()"
    ),
    "memory that is shared": "mmap.mmap(-1, 4096).write(b'x')",
    "a server on a socket": "socket.create_server(('127.0.0.1', 0)).close()",
    "a socket in its folder": "socket.socket(socket.AF_UNIX).bind('socket')",
    "its own nice": "os.nice(1)",
    "its own score": "open('/proc/self/oom_score_adj', 'w').write('500')",
    "a name for its thread": "open('/proc/self/comm', 'w').write('x')",
    "a terminal": "os.close(pty.openpty()[0])",
}
"""What programs do that nobody has changed."""

PROGRAM: Final = """
import asyncio, ctypes, errno, json, mmap, multiprocessing, os, pty, socket, sqlite3, subprocess
import sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
numbers, attempts, sibling, outside, abstract = json.loads(sys.argv[1])
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "no")
def call(name, *arguments):
    result = libc.syscall(numbers[name], *arguments)
    if name == "clone" and result == 0:
        os._exit(0)
    check(result)
said = {}
for name, text in attempts.items():
    try:
        exec(text)
    except OSError as error:
        said[name] = errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        said[name] = repr(error)
    else:
        said[name] = "ok"
print(json.dumps(said))
"""
"""Its argument is JSON: numbers of system calls, what is tried, a pid, a file, an abstract name."""

NUMBERS: Final = {
    "x86_64": {
        "clone": 56, "process_vm_readv": 310, "keyctl": 250, "add_key": 248, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "init_module": 175,
        "kexec_load": 246,
    },
    "aarch64": {
        "clone": 220, "process_vm_readv": 270, "keyctl": 219, "add_key": 217, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "init_module": 105,
        "kexec_load": 104,
    },
}  # fmt: skip
"""System calls that Python has no function for."""
