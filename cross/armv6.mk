# Every Pi from the first Zero to the 5: the instructions of its ARM1176.
# Soft float, as Debian's hard-float compiler brings code for ARMv7 only.
T = arm-linux-gnueabi
CPU = -march=armv6 -marm -mfloat-abi=soft -mtune=arm1176jzf-s
# Thumb, the first one: a third smaller, but without the long multiplication that
# cryptography lives on.
SMALL = -mthumb
# Position independence would cost 13 kB of what the file may have.
PIE = -fno-pie
PIE_LINK =
SIZE_MAX = 280000
RUN = qemu-arm -cpu arm1176
DEB = armel armhf
# The kernel of a Pi 5 has pages of 16 KiB and kills what is aligned to less
# than that; 64 KiB are the most that there is on ARM. The other size is what ld may
# pad the file to between its segments.
LINK = -Wl,-z,max-page-size=0x10000,-z,common-page-size=0x10
