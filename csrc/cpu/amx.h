// Whether AMX is there, for bfloat16: asked of the processor, and then of the system.
#pragma once

namespace fusedrnn::cpu {
// Asks once a process, and thereby demands the room that the tiles take in a thread's saved state. Linux only.
bool runs_amx();
}  // namespace fusedrnn::cpu
