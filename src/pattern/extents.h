// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/pattern.h"

namespace block_sparse {

/// Extents and block shape that int32 indices and int64 byte offsets can
/// address. Looks at no array.
Status check_extents(const PatternView& pattern);

}  // namespace block_sparse
