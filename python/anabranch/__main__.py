import sys

from anabranch.cli.main import main

sys.exit(main(sys.argv[1:]))
