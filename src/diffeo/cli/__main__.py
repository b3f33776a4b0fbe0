from diffeo.cli import main

raise SystemExit(main())
