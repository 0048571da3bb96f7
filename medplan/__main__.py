"""``python -m medplan`` is ``medplan``."""

from medplan.cli import main

raise SystemExit(main())
