"""Measures the resource bars (src/subbyte/rtl/resources_bars.py) and fails when one is missed: `make rtl-bars`.

python scripts/rtl_bars.py [--again]     --again synthesizes everything, whatever the cache holds
"""

import sys

from subbyte.rtl.resources_bars import check
from subbyte.rtl.synth import default_cache, tool_version

if __name__ == "__main__":
    print(f"{tool_version()}, synth_xilinx xc7: synthesis estimates, not routed")
    sys.exit(0 if check(None if "--again" in sys.argv[1:] else default_cache()) else 1)
