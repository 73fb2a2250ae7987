/** Hydrates the example's panel in the browser; the page's own server knows the token. */
import { hydrateRoot } from "react-dom/client";

import { CreditsPanel } from "./apps/web/src/components/credits";
import { storeFor } from "./apps/web/src/credits/credits.js";

storeFor("/credits/").token = async () => (await fetch("/token?fresh=false")).text();
hydrateRoot(
  document.getElementById("root")!,
  <CreditsPanel items={[{ operation: "stem_separation" }]} locale="en" />,
  { onRecoverableError: (error) => console.error("not hydrated:", error) },
);
