/** Serves the example's tRPC router; the header `x-user` names the user. */
import { createHTTPServer } from "@trpc/server/adapters/standalone";

import { connect, creditsRouter } from "./apps/api/src/routers/credits";

const [target = "", protos = ""] = process.argv.slice(2);
const server = createHTTPServer({
  router: creditsRouter(connect(target, protos)),
  createContext: ({ req }) => ({ userId: req.headers["x-user"]?.toString() ?? null }),
});
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  console.log(`listens on 127.0.0.1:${typeof address === "object" ? address?.port : address}`);
});
