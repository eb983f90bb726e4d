"""old_kernel.py PROGRAM [ARGUMENT...]: runs it on a kernel without the system calls younger than Linux 3.2.

For x86_64: a seccomp filter answers ENOSYS to all numbers above those of 3.2.
"""

import ctypes
import os
import struct
import sys

LAST = 311                      # process_vm_writev

LOAD, JUMP_IF_ABOVE, RETURN = 0x20, 0x25, 0x06
ALLOW, ERRNO, ENOSYS = 0x7FFF0000, 0x00050000, 38
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2

CODE = b"".join(struct.pack("HBBI", *instruction) for instruction in (
    (LOAD, 0, 0, 0),            # the number of the call
    (JUMP_IF_ABOVE, 1, 0, LAST),
    (RETURN, 0, 0, ALLOW),
    (RETURN, 0, 0, ERRNO | ENOSYS)))


class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or \
        libc.prctl(SECCOMP, FILTER, ctypes.byref(Program(len(CODE) // 8, CODE)), 0, 0):
    sys.exit("no seccomp here: " + os.strerror(ctypes.get_errno()))
try:
    os.getrandom(1)
except OSError as e:
    assert e.errno == ENOSYS
else:
    sys.exit("the filter does nothing")
os.execv(sys.argv[1], sys.argv[1:])
