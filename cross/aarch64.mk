# For 64-bit kernels that cannot run 32-bit programs.
T = aarch64-linux-gnu
CPU = -march=armv8-a
SMALL =
PIE = -fPIE
PIE_LINK = -Wl,-pie,--no-dynamic-linker,-z,text
SIZE_MAX = 400000
RUN = qemu-aarch64 -cpu cortex-a53
DEB = arm64
LINK = -Wl,-z,max-page-size=0x10000,-z,common-page-size=0x10
