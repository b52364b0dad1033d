import sys

if sys.argv[1:2] == ["info"]:  # which has to work where nothing else of the package loads
    from anabranch.cli.info import main
else:
    from anabranch.cli.main import main

sys.exit(main(sys.argv[1:]))
