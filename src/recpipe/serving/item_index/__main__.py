"""`python -m recpipe.serving.item_index`: build the index of a bundle; see ``recpipe.serving.item_index.files``."""

import sys

from recpipe.serving.item_index.files import main

sys.exit(main())
