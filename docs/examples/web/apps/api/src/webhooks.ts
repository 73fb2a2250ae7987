/**
 * A receiver of the credit service's webhooks, for an app on node.
 *
 * WEBHOOK_SECRET=whsec_... PORT=8090 node webhooks.js
 */
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

/** An event of the service; `data` depends on the type. */
export interface CreditEvent {
  readonly type: string;
  readonly timestamp: string;
  readonly data: Readonly<Record<string, unknown>>;
}

const BODY_BYTES_MAX = 1 << 20;

/**
 * Makes a server that verifies each event and passes it on.
 *
 * `handle` is called with the event's id, which is the same whenever the event is sent again: store
 * it in the transaction that handles the event, and skip an event whose id is already stored.
 * The service sends the event again if `handle` throws.
 */
export function webhookServer(
  secret: string,
  handle: (id: string, event: CreditEvent) => Promise<void>,
): Server {
  const webhook = new Webhook(secret);
  return createServer((request, response) => {
    void answer(request).then((status) => response.writeHead(status).end());
  });

  async function answer(request: IncomingMessage): Promise<number> {
    try {
      const parts: Buffer[] = [];
      let size = 0;
      for await (const part of request as AsyncIterable<Buffer>) {
        size += part.length;
        if (size > BODY_BYTES_MAX) return 413;
        parts.push(part);
      }
      // The signature covers the exact bytes, so the body is verified before it is parsed.
      const headers = request.headers as Record<string, string>;
      const event = webhook.verify(Buffer.concat(parts).toString(), headers) as CreditEvent;
      await handle(String(headers["webhook-id"]), event);
      return 204;
    } catch (error) {
      if (error instanceof WebhookVerificationError) return 400;
      console.error(error);
      return 500;
    }
  }
}

const secret = process.env["WEBHOOK_SECRET"];
if (secret) {
  const server = webhookServer(secret, async (id, event) => {
    console.log(`${event.type} ${id}`);
  });
  server.listen(Number(process.env["PORT"] ?? 8090), "127.0.0.1", () => {
    console.log(`listens on 127.0.0.1:${(server.address() as AddressInfo).port}`);
  });
}
