/** Renders the example's panel as a server does, once, to standard output. */
import { renderToString } from "react-dom/server";

import { CreditsPanel } from "./apps/web/src/components/credits";

process.stdout.write(renderToString(<CreditsPanel items={[{ operation: "stem_separation" }]} locale="en" />));
