# The PC itself.
T = x86_64-linux-gnu
CPU = -march=x86-64
SMALL =
PIE = -fPIE
PIE_LINK = -Wl,-pie,--no-dynamic-linker,-z,text
SIZE_MAX = 400000
RUN =
DEB = amd64
LINK = -Wl,-z,max-page-size=0x1000
