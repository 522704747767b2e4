// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cpu_features.h"
#include "block_sparse/executor.h"
#include "block_sparse/pattern.h"
#include "block_sparse/products.h"
#include "block_sparse/status.h"
#include "block_sparse/types.h"
